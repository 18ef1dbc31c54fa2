"""Look things up: `fmeco info`, `fmeco list`, `fmeco describe`, `fmeco schema` and `fmeco cache`."""

from __future__ import annotations

import functools
import json
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fmeco.cli.options import Ref, Shown, command
from fmeco.cli.tables import table
from fmeco.errors import clean

ORDER = 5


def register(app: typer.Typer) -> None:
    app.command()(info)
    app.command("list")(list_)
    for one in (describe, schema, cache):
        app.command()(one)


def _show_info(result: Mapping[str, Any]) -> None:
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, item in value.items():
                print(f"  {clean(key)}: {clean(f'{item:.4f}' if isinstance(item, float) else item, 200)}")
        else:
            print(f"{name}: {clean(value, 200)}")


def _show_list(kind: str, word: str, result: Mapping[str, Any]) -> None:
    for name, one in result.items():
        note = "" if one["from"] == "fmeco" else f"  ({one['from']})"
        print(table([[name, one["help"] + note]], ["<16", "<"], gap=" ", widest=16))
        names = one["names"]
        if len(names) > 200 and not word:
            names = [f"{len(names)} names such as {names[0]}: `fmeco list {kind} WORD` shows those that hold WORD"]
        if names:
            indent = " " * 4
            print(
                textwrap.fill(
                    ", ".join(names), 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
                )
            )


def _show_description(result: Mapping[str, Any]) -> None:
    print(f"{result['name']}: {result['help']}\n")
    for key, one in result["keys"].items():
        default = "required" if one["required"] else f"default {json.dumps(one['default'])}"
        print(f"  {key}: {one['type']}, {default}" + (f"\n      {one['help']}" if one["help"] else ""))
    if not result["keys"]:
        print("  no keys")


def _show_cache(result: Mapping[str, Any]) -> None:
    if "removed" in result:
        print(f"removed {result['removed']} files, {result['bytes'] / 1e6:,.1f} MB, from {result['folder']}")
        return
    rows = [["kind", "MB", "last used", "file"]]
    for one in result["entries"]:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["used"]))
        rows.append([one["kind"], f"{one['bytes'] / 1e6:,.1f}", used, Path(one["file"]).name])
    total = sum(one["bytes"] for one in result["entries"])
    print(f"{len(rows) - 1} files, {total / 1e6:,.1f} MB, in {result['folder']}")
    if len(rows) > 1:
        print(table(rows))


@command(_show_info, plugins=False)
def info(ref: Ref) -> Any:
    """Show what a checkpoint is, after verifying every byte of it."""
    from fmeco.inference import model as use

    return use.info(ref)


@command()
def list_(
    kind: Annotated[
        str,
        typer.Argument(help="datasets, backbones, objectives, augment, optimizers, schedules or strategies."),
    ],
    word: Annotated[str, typer.Argument(metavar="[WORD]", help="Only names that hold it.", show_default=False)] = "",
) -> Any:
    """List the plug-ins of a kind."""
    from fmeco.plugins.registry import kind_of, plugins

    found = {
        one.name: {
            "help": one.help,
            "names": [name for name in one.spellings[: len(one.names)] if word in f"{one.name}/{name}"],
            "from": one.module.split(".")[0] if one.module else str(one.file),
        }
        for one in plugins(kind_of(kind)).values()
        if any(word in name for name in (one.name, *one.spellings))
    }
    return Shown(found, functools.partial(_show_list, kind, word))


@command(_show_description)
def describe(
    kind: Annotated[str, typer.Argument(metavar="KIND")], name: Annotated[str, typer.Argument(metavar="NAME")]
) -> Any:
    """Show a plug-in's keys, with their types, defaults and help."""
    from fmeco.config.describe import describe_plugin, describe_section
    from fmeco.config.sections import SECTIONS

    if kind in ("section", "sections") and name in (*SECTIONS, "transfer"):
        return describe_section(name)
    return describe_plugin(kind, name)


@command(lambda result: print(json.dumps(result, indent=1, ensure_ascii=False)), plugins=False)
def schema() -> Any:
    """Print the JSON Schema of a config, for editors."""
    from fmeco.config.json_schema import json_schema

    return json_schema()


@command(_show_cache, plugins=False)
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove what is kept.")] = False,
    older_than: Annotated[float, typer.Option(help="Only what was not used for this many days.")] = 0.0,
) -> Any:
    """Show, or clear, what is kept on this machine: decoded samples, and features of frozen backbones."""
    from fmeco.data import disk_cache

    if clear:
        files, size = disk_cache.clear(86400 * older_than)
        return {"folder": str(disk_cache.folder()), "removed": files, "bytes": size}
    return {"folder": str(disk_cache.folder()), "entries": disk_cache.entries()}
