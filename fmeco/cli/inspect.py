"""Inspect checkpoints, plug-ins, configs and the cache: `fmeco info`, `list`, `describe`, `schema` and `cache`."""

from __future__ import annotations

import functools
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from fmeco.cli.options import Ref, Shown, command
from fmeco.cli.tables import table
from fmeco.errors import clean, listing
from fmeco.log import moment

ORDER = 5
SHOWN = 40  # lines of a list, unless all are asked for


def register(app: typer.Typer) -> None:
    app.command()(info)
    app.command("list")(list_)
    for function in (describe, schema, cache):
        app.command()(function)


def _show_info(everything: bool, result: Mapping[str, Any]) -> None:
    for name, value in result.items():
        if name == ("layers" if everything else "names"):
            continue
        if name == "layers":
            _show_layers(value)
        elif isinstance(value, dict):
            print(f"{name}:")
            shown = len(value) if everything else SHOWN
            for key, item in list(value.items())[:shown]:
                print(f"  {clean(key)}: {clean(f'{item:.4f}' if isinstance(item, float) else item, 200)}")
            if len(value) > shown:
                print(f"  ... and {len(value) - shown} more: --all shows all of them")
        else:
            print(f"{name}: {clean(value, 200)}")


def _show_layers(layers: Sequence[Mapping[str, Any]]) -> None:
    """Print a line per group of layers, and how to see their tensors."""
    rows = [["layer", "tensors", "numbers", "types", "shapes"]]
    for row in layers[:SHOWN]:
        types = ", ".join(row["types"])
        rows.append(
            [clean(row["layer"], 80), str(row["tensors"]), f"{row['numbers']:,}", types, clean(row["shapes"], 120)]
        )
    print()
    print(table(rows, ["<", ">", ">", "<", "<"]))
    more = f"... and {len(layers) - SHOWN} more lines; " if len(layers) > SHOWN else ""
    print(f"\n{more}--all lists every tensor")


def _show_list(kind: str, word: str, result: Mapping[str, Any]) -> None:
    for name, plugin in result.items():
        note = "" if plugin["from"] == "fmeco" else f"  ({plugin['from']})"
        print(table([[name, plugin["help"] + note]], ["<16", "<"], gap=" ", widest=16))
        names = plugin["names"]
        if len(names) > 200 and not word:
            names = [f"{len(names)} names such as {names[0]}: `fmeco list {kind} WORD` shows those that contain WORD"]
        if names:
            indent = " " * 4
            print(
                textwrap.fill(
                    ", ".join(names), 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
                )
            )


def _show_kinds(kinds: Mapping[str, Any]) -> None:
    rows = [[kind, str(len(names)), listing(names, 5)] for kind, names in kinds.items()]
    print(table([["kind", "plug-ins", "such as"], *rows], ["<", ">", "<"]))
    print("\n`fmeco list KIND [WORD]` lists every name, `fmeco describe KIND NAME` shows the keys of one.")


def _show_help(what: str, result: Mapping[str, str]) -> None:
    first = ([name, re.split(r"(?<=[.]) (?=[A-Z`])", text)[0]] for name, text in result.items())
    print(table([*first], ["<", "<"]))
    print(f"\n`fmeco describe {what} NAME` shows one of them.")


def _show_all(result: Mapping[str, Any]) -> None:
    _show_kinds(result["kinds"])
    print()
    _show_help("section", result["sections"])


def _show_description(result: Mapping[str, Any]) -> None:
    print(f"{result['name']}: {result['help']}\n")
    if "default" in result:
        print(f"  default: {result['default']}")
    if "plugins" in result:
        print(f"  plug-ins: {', '.join(result['plugins'])}")
        kind = result["kind"]
        print(f"  `fmeco list {kind}` lists every name, `fmeco describe {kind} NAME` shows the keys of one")
        if result["keys"]:
            print("\nkeys of the section, for every plug-in:\n")
    for key, key_info in result["keys"].items():
        default = "required" if key_info["required"] else f"default {json.dumps(key_info['default'])}"
        print(f"  {key}: {key_info['type']}, {default}" + (f"\n      {key_info['help']}" if key_info["help"] else ""))
    if not result["keys"] and "default" not in result:
        print("  no keys")


def _show_cache(result: Mapping[str, Any]) -> None:
    if "removed" in result:
        print(f"removed {result['removed']} files, {result['bytes'] / 1e6:,.1f} MB, from {result['folder']}")
        return
    rows = [["name", "kind", "MB", "last used", "samples", "data", "model"]]
    for entry in result["entries"]:
        used = moment(entry["used"])
        samples = "" if entry["samples"] is None else f"{entry['samples']:,}"
        about = [clean(entry[key]) or "-" for key in ("data", "model")]
        rows.append([clean(entry["name"][:12]), entry["kind"], f"{entry['bytes'] / 1e6:,.1f}", used, samples, *about])
    total = sum(entry["bytes"] for entry in result["entries"])
    print(f"{len(rows) - 1} files, {total / 1e6:,.1f} MB, in {result['folder']}")
    if len(rows) > 1:
        print(table(rows, ["<", "<", ">", "<", ">", "<", "<"]))
        print("\n`fmeco cache NAME --clear` removes one of them.")


@command(plugins=False, downloads=True)
def info(
    ref: Ref, all_: Annotated[bool, typer.Option("--all", help="List every tensor of a file of weights.")] = False
) -> Any:
    """Show what a checkpoint is, after verifying its files byte by byte, or what a file of weights holds."""
    from fmeco.inference import info as describing

    return Shown(describing.info(ref), functools.partial(_show_info, all_))


@command()
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help="datasets, backbones, objectives, augment, optimizers, schedules or strategies."),
    ] = None,
    word: Annotated[str, typer.Argument(metavar="[WORD]", help="Only names that contain it.", show_default=False)] = "",
) -> Any:
    """List the plug-ins of a kind; without a kind, list the kinds."""
    from fmeco.plugins.registry import kind_of, plugins

    if kind is None:
        from fmeco.config.describe import kinds

        return Shown(kinds(), _show_kinds)
    listed = {
        plugin.name: {
            "help": plugin.help,
            "names": [name for name in plugin.spellings[: len(plugin.names)] if word in f"{plugin.name}/{name}"],
            "from": plugin.module.split(".")[0] if plugin.module else str(plugin.file),
        }
        for plugin in plugins(kind_of(kind)).values()
        if any(word in name for name in (plugin.name, *plugin.spellings))
    }
    return Shown(listed, functools.partial(_show_list, kind, word))


@command(_show_description)
def describe(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="A kind of plug-in as in `fmeco list`, or section.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A plug-in, or a section of a config.")] = None,
) -> Any:
    """Show the keys of a plug-in or section, with types, defaults and help; without a name, list the names."""
    from fmeco.config import describe as describing

    if kind is None:
        return Shown({"kinds": describing.kinds(), "sections": describing.sections()}, _show_all)
    if kind in ("section", "sections"):
        if name is None:
            return Shown(describing.sections(), functools.partial(_show_help, "section"))
        return describing.describe_section(name)
    if name is None:
        return Shown(describing.describe_kind(kind), functools.partial(_show_help, kind))
    return describing.describe_plugin(kind, name)


@command(lambda result: print(json.dumps(result, indent=1, ensure_ascii=False)), plugins=False)
def schema() -> Any:
    """Print the JSON Schema of a config, for editors."""
    from fmeco.config.json_schema import json_schema

    return json_schema()


@command(_show_cache, plugins=False)
def cache(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only the entry whose name begins so.", show_default=False)
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete the cached files.")] = False,
    older_than: Annotated[
        float, typer.Option(help="With --clear: only files that were not used for this many days.")
    ] = 0.0,
) -> Any:
    """Show or clear the cache on this machine: decoded samples, and features of frozen backbones."""
    from fmeco.data import disk_cache

    if clear:
        files, size = disk_cache.clear(name, 86400 * older_than)
        return {"folder": str(disk_cache.folder()), "removed": files, "bytes": size}
    shown = disk_cache.entries() if name is None else [disk_cache.find(name)]
    return {"folder": str(disk_cache.folder()), "entries": shown}
