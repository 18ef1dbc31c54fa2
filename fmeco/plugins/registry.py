"""Plug-ins: a name in YAML is a file in a folder, and the signature in that file is its config schema.

A plug-in file is read with `ast`, never imported, until something is built from it: listing, validating and
describing need neither torch nor the plug-in. In `build(...)` the parameters before `*` are handed in by name
(`INJECTED` below); the keyword-only ones are the user's keys, with their types, defaults and help.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from fmeco.plugins.signature import VOCABULARY, KeyGroup, annotation, key_group, literal, mentions, parse_file, schema

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
_HERE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Plugin:
    """One plug-in as its file declares it, read without importing it."""

    kind: str
    name: str
    file: Path
    module: str  # the import path, "" for --plugin files
    model: type[BaseModel]  # the schema of the user's keys
    injected: tuple[str, ...]
    help: str  # first paragraph of the file's docstring
    names: tuple[str, ...]  # architectures or datasets of a library this file stands for
    suffixes: tuple[str, ...]  # of the files that a dataset of class folders reads
    files: tuple[str, ...]  # suffixes of the files that a dataset reads as a whole, such as tables
    lists: str  # the dataset whose files a table names, where another one reads such tables
    fallback: bool  # it is the dataset of a folder or file, where nothing tells of which one it is
    layout: tuple[
        str, ...
    ]  # the keys that --dataset FILE inherits from a checkpoint; NAME? where the file has the column
    starter: Mapping[str, str]  # what `fmeco init` writes: "backbone", and "column", the key of the column to learn
    qualified: bool  # its names are known as PLUGIN/NAME alone
    open: bool  # it takes PLUGIN/ANYTHING: what its names are is not fmeco's to list
    tables: bool  # --dataset TABLE with a checkpoint that it made data for is read by it
    renamed: Mapping[str, str]  # old key -> new key
    paths: tuple[str, ...]  # the keys that are files or folders
    refs: tuple[str, ...]  # the keys that name a checkpoint
    nested: Mapping[str, str]  # key that holds sections -> their kind
    key_groups: Mapping[str, KeyGroup]  # parameter that is handed several keys as one value -> these keys
    modality: str  # of a dataset's samples; "" where the file does not say
    default_for: tuple[str, ...]  # kinds of targets that an objective serves where a config names none
    combines: str  # the key under which an objective takes one objective for each of several targets
    finetune: Mapping[str, Any]  # keys that have another default when finetuning

    @property
    def built_in(self) -> bool:
        """Whether it comes with fmeco."""
        return self.module.startswith("fmeco.")

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
        return self.bound(options, teach)(**given)

    def bound(self, options: Mapping[str, Any], teach: Callable[[str], Any] = lambda _: None) -> Callable[..., Any]:
        """Import the plug-in and check the user's options. Returns its `build` with these options: a function of the
        injected values by name, which passes on those that the signature asks for."""
        module = self.load()
        check: Callable[..., list[str]] | None = getattr(module, "check", None)
        if check is not None and (problems := check(**options)):
            raise ConfigError("\n".join(f"{self.kind}/{self.name}: {problem}" for problem in problems))
        handed = dict(options)
        for key, kind in self.nested.items():
            handed[key] = {name: functools.partial(build_section, kind, raw) for name, raw in options[key].items()}
        for key in self.refs:
            handed[key] = teach(options[key])
        for name, group in self.key_groups.items():
            handed[name] = group.kind(**{key: handed.pop(key) for key in group.fields})
        build, injected = module.build, self.injected

        def call(**given: Any) -> Any:
            return build(*(given[name] for name in injected), **handed)

        return call


def build_section(kind: str, section: Mapping[str, Any], **given: Any) -> Any:
    """What a checked section {"name": ..., key: value} describes."""
    options = dict(section)
    plugin, arch = find(kind, options.pop("name"))
    return plugin.build({"arch": arch, **given}, options)


_EXTRA: dict[tuple[str, str], Plugin] = {}  # what --plugin brought, by (kind, name)


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
    """Every plug-in of a kind by name: fmeco's own, those of installed packages, those of --plugin.

    A name stands for one file wherever a config or a checkpoint is read. Raises ConfigError where two files have it.
    """
    found = dict(_builtin(kind))
    installed = [_entry_point(kind, name, module) for name, module in _entry_points(kind)]
    for plugin in [*installed, *(plugin for plugin in _EXTRA.values() if plugin.kind == kind)]:
        _refuse_twins(found, plugin)
        found[plugin.name] = plugin
    return found


def _refuse_twins(known: Mapping[str, Plugin], plugin: Plugin) -> None:
    """Raise ConfigError where a plug-in's name is that of another file, or of an architecture in another's library."""
    libraries = (one for one in known.values() if not one.qualified and plugin.name in one.names)
    other = known.get(plugin.name) or next(libraries, None)
    if other is not None and other.file.resolve() != plugin.file.resolve():
        raise ConfigError(
            f"{plugin.kind}: '{clean(plugin.name)}' is a name of two files: {clean(other.file)} and {clean(plugin.file)}",
            "rename one: configs and checkpoints store the name alone",
        )


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


def require(what: str, named: Iterable[tuple[str, str]]) -> None:
    """Raise ConfigError where a plug-in (kind, name or NAME/ARCH) that `what` needs is not there."""
    if absent := [f"{kind}/{name}" for kind, name in named if name.partition("/")[0] not in plugins(kind)]:
        raise ConfigError(
            f"{what} needs {listing(absent)}: --plugin FILE.py",
            "--plugin also takes a folder of such files; those of an installed package are found without it",
        )


@contextlib.contextmanager
def added(paths: Iterable[Path]) -> Iterator[None]:
    """Within, the plug-ins of these files and folders are known (--plugin)."""
    before = dict(_EXTRA)
    try:
        for path in paths:
            add(path)
        yield
    finally:
        _EXTRA.clear()
        _EXTRA.update(before)


def add(path: Path) -> list[Plugin]:
    """Make a stranger's plug-ins known: those of a file, or of every file of a folder that does not begin with `_`. Raises
    ConfigError."""
    if not path.is_dir():
        return [add_file(path)]
    files = sorted(file for file in path.glob("*.py") if not file.stem.startswith("_"))
    if not files:
        raise ConfigError(f"--plugin {clean(path)}: the folder holds no plug-in", "it takes files NAME.py")
    return [add_file(file) for file in files]


def add_file(path: Path) -> Plugin:
    """Make the plug-in of one file known under the file's name.

    The file says of what kind it is with `KIND = "objective"`.
    """
    if not path.is_file():
        raise ConfigError(f"--plugin {clean(path)}: no such file or folder")
    tree = parse_file(path)
    kind = literal(tree, "KIND", path)
    if not isinstance(kind, str):
        raise ConfigError(
            f'{path}: a plug-in file says its kind, as in: KIND = "objective"',
            f"kinds: {', '.join(INJECTED)}",
            "a file whose name begins with _ may lie beside plug-ins without being one",
        )
    try:
        kind = kind_of(kind)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", *error.hints) from None
    plugin = _read(kind, path.stem, path.resolve(), "")
    _refuse_twins(plugins(kind), plugin)
    _EXTRA[kind, plugin.name] = plugin
    return plugin


@functools.cache
def _builtin(kind: str) -> Mapping[str, Plugin]:
    files = sorted(path for path in (_HERE / kind).glob("*.py") if not path.stem.startswith("_"))
    return {path.stem: _read(kind, path.stem, path, f"fmeco.{kind}.{path.stem}") for path in files}


@functools.cache
def _entry_points(kind: str) -> tuple[tuple[str, str], ...]:
    return tuple((entry.name, entry.module) for entry in importlib.metadata.entry_points(group=f"fmeco.{kind}"))


@functools.cache
def _entry_point(kind: str, name: str, module: str) -> Plugin:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of a package above it
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"the entry point fmeco.{kind}: {clean(name)} names the module {clean(module)}, which is not installed"
        )
    return _read(kind, name, Path(spec.origin), module)


def _read(kind: str, name: str, file: Path, module: str) -> Plugin:
    """Read one plug-in's schema from its source."""
    tree = parse_file(file)
    node = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "build"), None)
    if node is None:
        raise ConfigError(f"{file}: a plug-in needs a function `build({', '.join(INJECTED[kind])}, *, ...)`")
    injected = tuple(arg.arg for arg in [*node.args.posonlyargs, *node.args.args])
    if wrong := [arg for arg in injected if arg not in INJECTED[kind]]:
        raise ConfigError(
            f"{file}:{node.lineno}: build() cannot be handed {listing(wrong)}; "
            f"before `*` a plug-in of kind {kind} may name: {', '.join(INJECTED[kind])}"
        )
    if node.args.vararg or node.args.kwarg:
        raise ConfigError(f"{file}:{node.lineno}: build() must name every key; *args and **kwargs hide typos")
    fields, groups = _fields(node, file)
    if kind == "optimizers" and "lr" not in fields:
        raise ConfigError(
            f"{file}:{node.lineno}: an optimizer needs a key for the learning rate, as in: lr: Rate = 1e-3"
        )
    names = literal(tree, "NAMES", file) or ()
    if (listed := file.with_suffix(".txt")).is_file():
        names = listed.read_text("utf-8").split()
    doc = ast.get_docstring(tree) or ""
    return Plugin(
        kind=kind,
        name=name,
        file=file,
        module=module,
        injected=injected,
        model=schema(f"{kind}/{name}", fields),
        help=doc.split("\n\n")[0].replace("\n", " "),
        names=tuple(names),
        suffixes=tuple(literal(tree, "SUFFIXES", file) or ()),
        files=tuple(literal(tree, "FILES", file) or ()),
        lists=literal(tree, "LISTS", file) or "",
        fallback=bool(literal(tree, "FALLBACK", file)),
        layout=_layout(tree, fields, file),
        starter=literal(tree, "STARTER", file) or {},
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
        key_groups=groups,
        modality=literal(tree, "MODALITY", file) or "",
        default_for=tuple(literal(tree, "DEFAULT_FOR", file) or ()),
        combines=literal(tree, "COMBINES", file) or "",
        finetune=literal(tree, "FINETUNE", file) or {},
    )


def _fields(node: ast.FunctionDef, file: Path) -> tuple[dict[str, tuple[Any, Any]], dict[str, KeyGroup]]:
    """Read the user's keys, each with its type and default, and the parameters that are handed several of them at once."""
    fields: dict[str, tuple[Any, Any]] = {}
    groups: dict[str, KeyGroup] = {}
    for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        where = f"{file}:{arg.lineno}: {arg.arg}"
        if arg.annotation is None:
            raise ConfigError(f"{where} has no type")
        try:
            group = key_group(arg.annotation, default)
            if group is not None:
                groups[arg.arg], added = group, group.fields
            else:
                added = {arg.arg: (annotation(arg.annotation), ... if default is None else ast.literal_eval(default))}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{where}: {error}", "types: " + ", ".join(VOCABULARY), "defaults are literals") from None
        if twice := [key for key in added if key in fields]:
            raise ConfigError(f"{where}: the key {listing(twice)} is there twice")
        fields |= added
    return fields, groups


def _layout(tree: ast.Module, fields: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    layout = tuple(literal(tree, "LAYOUT", file) or ())
    if strange := [key for key in layout if key.removesuffix("?") not in fields]:
        raise ConfigError(
            f"{file}: LAYOUT names {listing(strange)}, and build() has no such key{nearest(strange[0], fields)}"
        )
    return layout


def _import_file(file: Path) -> ModuleType:
    """Import a --plugin file once, under a name that loader workers can find again.

    Its folder counts as a package, so that it can import what lies beside it: `from ._shared import x`.
    """
    package = f"fmeco_plugins_{hashlib.sha256(str(file.parent).encode()).hexdigest()[:12]}"
    if package not in sys.modules:
        folder = importlib.machinery.ModuleSpec(package, None, is_package=True)
        folder.submodule_search_locations = [str(file.parent)]
        sys.modules[package] = importlib.util.module_from_spec(folder)
    name = f"{package}.{file.stem.replace('.', '_')}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, FmecoError) or not isinstance(error, Exception):
            raise
        absent = error.name if isinstance(error, ImportError) else None
        beside = absent is not None and (file.parent / f"{absent}.py").is_file()
        raise ConfigError(
            f"--plugin {file} could not be imported: {type(error).__name__}: {clean(error)}",
            f"a file beside it is imported as: from .{absent} import ..." if beside else "",
        ) from error
    return module
