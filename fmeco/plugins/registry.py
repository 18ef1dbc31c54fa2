"""Plug-ins: a name in YAML is a file in a folder, and the signature in that file is its config schema.

A plug-in file is read with `ast`, never imported, until something is built from it: listing, validating and
describing need neither torch nor the plug-in. In `build(...)` the parameters before `*` are handed in by name
(`INJECTED` below); the keyword-only ones are the user's keys, with their types, defaults and help.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from annotated_types import Ge as Ge
from annotated_types import Gt as Gt
from annotated_types import Le as Le
from annotated_types import Lt as Lt
from pydantic import BaseModel

from fmeco.errors import ConfigError, FmecoError, clean, listing, nearest
from fmeco.plugins.keys import NESTED
from fmeco.plugins.signature import VOCABULARY, annotation, literal, mentions, parse_file, schema

# kind -> (what `build` may be handed by name, where its plug-ins live)
INJECTED: dict[str, tuple[str, ...]] = {
    "datasets": ("known", "whole", "arch"),
    "backbones": ("spec", "arch"),
    "objectives": ("backbone", "spec"),
    "augment": ("spec", "arch", "train"),
    "optimizers": ("params",),
    "schedules": ("step", "total", "history"),
    "strategies": ("roles",),
}
# Optimizers, schedules and strategies are one function each, in one module; the other kinds are a file each.
_FUNCTIONS = {"optimizers": "optimizers.muon", "schedules": "optimizers.muon", "strategies": "strategies.lora"}
_HERE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Plugin:
    """One plug-in as its file declares it, read without importing it."""

    kind: str
    name: str
    file: Path
    function: str  # "build", or the optimizer's own name
    module: str  # the import path, "" for --plugin files
    model: type[BaseModel]  # the schema of the user's keys
    injected: tuple[str, ...]
    help: str  # first line of the docstring
    names: tuple[str, ...]  # architectures or datasets of a library this file stands for
    suffixes: tuple[str, ...]  # of the files that a dataset of class folders reads
    qualified: bool  # its names are known as PLUGIN/NAME alone
    open: bool  # it takes PLUGIN/ANYTHING: what its names are is not fmeco's to list
    tables: bool  # --dataset TABLE with a checkpoint that it made data for is read by it
    renamed: Mapping[str, str]  # old key -> new key
    paths: tuple[str, ...]  # the keys that are files or folders
    refs: tuple[str, ...]  # the keys that name a checkpoint
    nested: Mapping[str, str]  # key that holds sections -> their kind

    @property
    def spellings(self) -> list[str]:
        """What a config may call each of `names`; the shortest ones come first."""
        return [*(() if self.qualified else self.names), *(f"{self.name}/{name}" for name in self.names)]

    def load(self) -> ModuleType:
        """Import the plug-in's module."""
        if self.module:
            return importlib.import_module(self.module)
        return _import_file(self.file)

    def build(
        self, given: Mapping[str, Any], options: Mapping[str, Any], teach: Callable[[str], Any] = lambda _: None
    ) -> Any:
        """Call the plug-in with what its signature asks of `given`, and the user's options; `teach` turns a Ref into what
        it names, or into None where nothing is trained."""
        module = self.load()
        check: Callable[..., list[str]] | None = getattr(module, "check", None)
        if check is not None and self.function == "build" and (problems := check(**options)):
            raise ConfigError("\n".join(f"{self.kind}/{self.name}: {problem}" for problem in problems))
        inner = {
            key: {name: functools.partial(build_section, kind, raw) for name, raw in options[key].items()}
            for key, kind in self.nested.items()
        }
        inner |= {key: teach(options[key]) for key in self.refs}
        return getattr(module, self.function)(*(given[name] for name in self.injected), **{**options, **inner})


def build_section(kind: str, section: Mapping[str, Any], **given: Any) -> Any:
    """What a checked section {"name": ..., key: value} describes."""
    options = dict(section)
    plugin, arch = find(kind, options.pop("name"))
    return plugin.build({"arch": arch, **given}, options)


_EXTRA: dict[tuple[str, str], Plugin] = {}  # what --plugin FILE.py brought, by (kind, name)


def kind_of(word: str) -> str:
    """Turn a kind as a person writes it (singular accepted) into its folder's name."""
    spoken = {kind: kind for kind in INJECTED} | {"strategy": "strategies", "augments": "augment"}
    spoken |= {kind.rstrip("s"): kind for kind in INJECTED}
    if word not in spoken:
        raise ConfigError(
            f"no kind of plug-in is called '{clean(word)}'{nearest(word, spoken)}",
            f"kinds: {', '.join(INJECTED)}",
        )
    return spoken[word]


def plugins(kind: str) -> dict[str, Plugin]:
    """Every plug-in of a kind by name: fmeco's own, entry points, then --plugin files."""
    found = dict(_builtin(kind))
    for name, module in _entry_points(kind):
        if name not in found:
            found[name] = _entry_point(kind, name, module)
    return found | {name: plugin for (its_kind, name), plugin in _EXTRA.items() if its_kind == kind}


def find(kind: str, name: str) -> tuple[Plugin, str | None]:
    """Resolve a name of a config: a plug-in, SOURCE/ARCH, or a bare name that one plug-in's library knows.

    Returns the plug-in and, for a library's, the architecture.
    Raises ConfigError with the nearest valid name.
    """
    known = plugins(kind)
    source, slash, arch = name.partition("/")
    if not slash:
        if name in known and not known[name].names and not known[name].open:
            return known[name], None
        owners = [plugin for plugin in known.values() if name in plugin.names and not plugin.qualified]
        if len(owners) == 1:
            return owners[0], name
        if name in known:
            raise ConfigError(
                f"{kind}: '{name}' needs one of its names: {name}/NAME", f"`fmeco list {kind}` says which"
            )
    elif source in known and (arch in known[source].names or (known[source].open and arch)):
        return known[source], arch
    valid = [*known, *(spelling for plugin in known.values() for spelling in plugin.spellings)]
    raise ConfigError(
        f"{kind}: '{clean(name)}' is not known{nearest(name, valid)}", f"`fmeco list {kind} [WORD]` shows the names"
    )


def add_file(path: Path) -> Plugin:
    """Make a stranger's plug-in file known under its stem (--plugin FILE.py).

    The file says of what kind it is with `KIND = "objective"`.
    """
    if not path.is_file():
        raise ConfigError(f"--plugin {clean(path)}: no such file")
    tree = parse_file(path)
    kind = literal(tree, "KIND", path)
    if not isinstance(kind, str):
        raise ConfigError(
            f'{path}: a plug-in file says its kind, as in: KIND = "objective"',
            f"kinds: {', '.join(kind for kind in INJECTED if kind not in _FUNCTIONS)}",
        )
    plugin = _read(kind_of(kind), path.stem, path.resolve(), "")
    _EXTRA[plugin.kind, plugin.name] = plugin
    return plugin


@functools.cache
def _builtin(kind: str) -> Mapping[str, Plugin]:
    if kind in _FUNCTIONS:
        stem = _FUNCTIONS[kind]
        file = _HERE / f"{stem.replace('.', '/')}.py"
        first = INJECTED[kind][0]
        functions = [
            node.name
            for node in parse_file(file).body
            if isinstance(node, ast.FunctionDef)
            and node.args.args
            and node.args.args[0].arg == first
            and not node.name.startswith("_")
        ]
        return {name: _read(kind, name, file, f"fmeco.{stem}", name) for name in functions}
    files = sorted(path for path in (_HERE / kind).glob("*.py") if not path.stem.startswith("_"))
    return {path.stem: _read(kind, path.stem, path, f"fmeco.{kind}.{path.stem}") for path in files}


@functools.cache
def _entry_points(kind: str) -> tuple[tuple[str, str], ...]:
    return tuple((entry.name, entry.module) for entry in importlib.metadata.entry_points(group=f"fmeco.{kind}"))


@functools.cache
def _entry_point(kind: str, name: str, module: str) -> Plugin:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"the entry point fmeco.{kind}: {clean(name)} names the module {clean(module)}, which is not installed"
        )
    return _read(kind, name, Path(spec.origin), module)


def _read(kind: str, name: str, file: Path, module: str, function: str = "build") -> Plugin:
    """Read one plug-in's schema from its source."""
    tree = parse_file(file)
    node = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function), None)
    if node is None:
        raise ConfigError(f"{file}: a plug-in needs a function `{function}({', '.join(INJECTED[kind])}, *, ...)`")
    injected = tuple(arg.arg for arg in [*node.args.posonlyargs, *node.args.args])
    if wrong := [arg for arg in injected if arg not in INJECTED[kind]]:
        raise ConfigError(
            f"{file}:{node.lineno}: {function}() cannot be handed {listing(wrong)}; "
            f"before `*` a plug-in of kind {kind} may name: {', '.join(INJECTED[kind])}"
        )
    if node.args.vararg or node.args.kwarg:
        raise ConfigError(f"{file}:{node.lineno}: {function}() must name every key; *args and **kwargs hide typos")
    fields: dict[str, Any] = {}
    for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        where = f"{file}:{arg.lineno}: {arg.arg}"
        if arg.annotation is None:
            raise ConfigError(f"{where} has no type")
        try:
            fields[arg.arg] = (annotation(arg.annotation), ... if default is None else ast.literal_eval(default))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{where}: {error}", "types: " + ", ".join(VOCABULARY), "defaults are literals") from None
    names = literal(tree, "NAMES", file) or ()
    if (listed := file.with_suffix(".txt")).is_file() and function == "build":
        names = listed.read_text("utf-8").split()
    doc = ast.get_docstring(node if function != "build" else tree) or ""
    return Plugin(
        kind=kind,
        name=name,
        file=file,
        function=function,
        module=module,
        injected=injected,
        model=schema(f"{kind}/{name}", fields),
        help=doc.split("\n\n")[0].replace("\n", " "),
        names=tuple(names),
        suffixes=tuple(literal(tree, "SUFFIXES", file) or ()),
        qualified=bool(literal(tree, "QUALIFIED", file)),
        open=bool(literal(tree, "OPEN", file)),
        tables=bool(literal(tree, "TABLES", file)),
        renamed=literal(tree, "RENAMED", file) or {},
        paths=tuple(
            arg.arg
            for arg in node.args.kwonlyargs
            if mentions(arg.annotation, "FilePath") or mentions(arg.annotation, "Ref")
        ),
        refs=tuple(arg.arg for arg in node.args.kwonlyargs if mentions(arg.annotation, "Ref")),
        nested={arg.arg: k for arg in node.args.kwonlyargs for n, k in NESTED.items() if mentions(arg.annotation, n)},
    )


def _import_file(file: Path) -> ModuleType:
    """Import a --plugin file once, under a name that loader workers can find again."""
    name = f"fmeco_plugin_{file.stem}"
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(file):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except FmecoError:
        raise
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"--plugin {file} could not be imported: {type(error).__name__}: {clean(error)}") from error
    return module
