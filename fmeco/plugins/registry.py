"""Find plug-ins by name, read their config schemas and build them.

A plug-in file is parsed with `ast` and only imported when it is built, so listing, validating and describing need
neither torch nor the plug-in's imports. The parameters of `build(...)` before `*` are injected by name (see
`INJECTED`). The keyword-only parameters are the user's keys, with their types, defaults and help.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from fmeco.errors import ConfigError, clean, listing, nearest
from fmeco.files import absence
from fmeco.plugins.importing import PACKAGE, import_file
from fmeco.plugins.keys import NESTED, VOCABULARY
from fmeco.plugins.signature import KeyGroup, annotation, key_group, literal, mentions, parse_file, schema

# kind (also its folder's name) -> names of the parameters that `build` may declare before `*`
INJECTED: dict[str, tuple[str, ...]] = {
    "datasets": ("known", "whole", "arch"),
    "backbones": ("spec", "arch"),
    "objectives": ("backbone", "spec"),
    "augment": ("spec", "arch", "train"),
    "optimizers": ("params",),
    "schedules": ("step", "total", "history"),
    "strategies": ("roles", "layer_decay", "far"),
}
FINETUNE_LR = 1e-4  # of backbones whose plug-in names no other
_HERE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Plugin:
    """Describe one plug-in by the declarations in its file, read without importing it."""

    kind: str
    name: str
    file: Path
    module: str  # the import path, "" for --plugin files
    model: type[BaseModel]  # the schema of the user's keys
    injected: tuple[str, ...]
    help: str  # first paragraph of the file's docstring
    names: tuple[str, ...]  # architectures or datasets of a library that this file builds
    suffixes: tuple[str, ...]  # suffixes of the files that a dataset reads from class folders
    files: tuple[str, ...]  # suffixes of the files that a dataset reads as a whole, such as tables
    lists: str  # dataset that reads the files named in this dataset's tables; "" = none
    fallback: bool  # use this dataset if a folder's or file's contents do not determine one
    layout: tuple[str, ...]  # keys that --dataset FILE inherits from a checkpoint; NAME? = only columns the file has
    starter: Mapping[str, str]  # for `fmeco init`: "backbone", and "column", the key that names the column to learn
    qualified: bool  # a config must write PLUGIN/NAME, never NAME alone
    open: bool  # accepts PLUGIN/ANYTHING; `names` is not complete
    folders: bool  # reads a folder that holds files of `files`
    own_folders: bool  # as `tables`, for any --dataset FOLDER
    tables: bool  # if a checkpoint's dataset is this one, it also reads any --dataset TABLE used with the checkpoint
    renamed: Mapping[str, str]  # old key -> new key
    paths: tuple[str, ...]  # keys that are files or folders
    refs: tuple[str, ...]  # keys that name a checkpoint
    nested: Mapping[str, str]  # key that holds sections -> kind of those sections
    key_groups: Mapping[str, KeyGroup]  # parameter of `build` that bundles several keys -> these keys
    modality: str  # modality of a dataset's samples; "" = not declared
    default_for: tuple[str, ...]  # kinds of targets for which this objective is the default
    answering: tuple[str, ...]  # keys of an objective that change how it answers, and not what it learned
    combines: str  # key that holds one objective per target, for an objective that combines them; "" = none
    finetune: Mapping[str, Any]  # key -> its default when finetuning
    finetune_lr: float  # rate of adamw at which a published backbone of this plug-in is finetuned
    layer_decay: float  # factor on that rate from one twelfth of the layers to the twelfth below

    @property
    def built_in(self) -> bool:
        """Tell whether the plug-in ships with fmeco."""
        return self.module.startswith("fmeco.")

    @property
    def spellings(self) -> list[str]:
        """List every way in which a config may write each of `names`, shortest first."""
        return [*(() if self.qualified else self.names), *(f"{self.name}/{name}" for name in self.names)]

    def load(self) -> ModuleType:
        """Import the plug-in's module."""
        if self.module:
            return importlib.import_module(self.module)
        return import_file(self.file)

    def build(
        self, values: Mapping[str, Any], options: Mapping[str, Any], teach: Callable[[str], Any] = lambda _: None
    ) -> Any:
        """Build the plug-in from injected `values` (those its signature names) and the user's options.

        teach: loads the Teacher that a Ref key names; returns None if nothing is trained. Raises ConfigError.
        """
        return self.bound(options, teach)(**values)

    def bound(self, options: Mapping[str, Any], teach: Callable[[str], Any] = lambda _: None) -> Callable[..., Any]:
        """Import the plug-in, check the user's options and bind them to its `build`.

        Returns a function of the injected values by name; it ignores values that the signature does not name.
        """
        module = self.load()
        check: Callable[..., list[str]] | None = getattr(module, "check", None)
        if check is not None and (problems := check(**options)):
            raise ConfigError("\n".join(f"{self.kind}/{self.name}: {problem}" for problem in problems))
        arguments = dict(options)
        for key, kind in self.nested.items():
            arguments[key] = {name: functools.partial(build_section, kind, raw) for name, raw in options[key].items()}
        for key in self.refs:
            arguments[key] = teach(options[key])
        for name, group in self.key_groups.items():
            arguments[name] = group.kind(**{key: arguments.pop(key) for key in group.fields})
        build, injected = module.build, self.injected

        def call(**values: Any) -> Any:
            return build(*(values[name] for name in injected), **arguments)

        return call


def build_section(kind: str, section: Mapping[str, Any], **values: Any) -> Any:
    """Build the plug-in of a checked section {"name": ..., key: value} from the injected `values`."""
    options = dict(section)
    plugin, arch = find(kind, options.pop("name"))
    return plugin.build({"arch": arch, **values}, options)


_EXTRA: dict[tuple[str, str], Plugin] = {}  # plug-ins added with --plugin, by (kind, name)


def kind_of(word: str) -> str:
    """Turn a kind as a user writes it (singular or plural) into its folder's name. Raises ConfigError."""
    spellings = {kind: kind for kind in INJECTED} | {"strategy": "strategies", "augments": "augment"}
    spellings |= {kind.rstrip("s"): kind for kind in INJECTED}
    if word not in spellings:
        raise ConfigError(
            f"unknown kind of plug-in: '{clean(word)}'{nearest(word, spellings)}",
            f"kinds: {', '.join(INJECTED)}",
        )
    return spellings[word]


def plugins(kind: str) -> dict[str, Plugin]:
    """Return all plug-ins of a kind by name: built-in ones, those of installed packages and those of --plugin.

    Raises ConfigError if two files share a name, since configs and checkpoints store the name alone.
    """
    by_name = dict(_builtin(kind))
    installed = [_entry_point(kind, name, module) for name, module in _entry_points(kind)]
    for plugin in [*installed, *(plugin for plugin in _EXTRA.values() if plugin.kind == kind)]:
        _refuse_duplicate(by_name, plugin)
        by_name[plugin.name] = plugin
    return by_name


def _refuse_duplicate(by_name: Mapping[str, Plugin], plugin: Plugin) -> None:
    """Raise ConfigError if another file, or an architecture of another file's library, has this plug-in's name."""
    libraries = (other for other in by_name.values() if not other.qualified and plugin.name in other.names)
    other = by_name.get(plugin.name) or next(libraries, None)
    if not plugin.qualified and not plugin.built_in:
        taken = {
            name for p in by_name.values() if p is not other for name in (p.name, *(() if p.qualified else p.names))
        }
        if twice := [name for name in plugin.names if name in taken]:
            raise ConfigError(
                f"{clean(plugin.file)}: NAMES: other {plugin.kind} already have the names {listing(twice)}",
                "QUALIFIED = True lets configs name these as PLUGIN/NAME alone",
            )
    if other is not None and other.file.resolve() != plugin.file.resolve():
        raise ConfigError(
            f"{plugin.kind}: two files are named '{clean(plugin.name)}': {clean(other.file)} and {clean(plugin.file)}",
            "rename one of them: configs and checkpoints store only the name",
        )


def find(kind: str, name: str) -> tuple[Plugin, str | None]:
    """Resolve a config's name to a plug-in: PLUGIN, PLUGIN/ARCH, or an ARCH that exactly one library has.

    Returns the plug-in, and the architecture or None. Raises ConfigError that suggests the nearest valid name.
    """
    by_name = plugins(kind)
    source, slash, arch = name.partition("/")
    if not slash:
        if name in by_name and not by_name[name].names and not by_name[name].open:
            return by_name[name], None
        owners = [plugin for plugin in by_name.values() if name in plugin.names and not plugin.qualified]
        if len(owners) == 1:
            return owners[0], name
        if len(owners) > 1:
            spelled = listing(f"{plugin.name}/{name}" for plugin in owners)
            raise ConfigError(f"{kind}: '{name}' is in several libraries", f"write one of: {spelled}")
        if name in by_name:
            raise ConfigError(
                f"{kind}: '{name}' needs an architecture or dataset: {name}/NAME",
                f"`fmeco list {kind}` shows the names",
            )
    elif source in by_name and (arch in by_name[source].names or (by_name[source].open and arch)):
        return by_name[source], arch
    valid = [*by_name, *(spelling for plugin in by_name.values() for spelling in plugin.spellings)]
    raise ConfigError(
        f"{kind}: unknown name '{clean(name)}'{nearest(name, valid)}",
        f"`fmeco list {kind} [WORD]` shows the names; --plugin FILE adds a plug-in of your own",
    )


def require(user: str, named: Iterable[tuple[str, str]]) -> None:
    """Raise ConfigError if a plug-in that `user`, such as a run, needs is missing. named: (kind, NAME or NAME/ARCH)."""
    if absent := [f"{kind}/{name}" for kind, name in named if name.partition("/")[0] not in plugins(kind)]:
        raise ConfigError(
            f"{user} needs {listing(absent)}: --plugin FILE.py",
            "--plugin also takes a folder of plug-in files; plug-ins of installed packages need no --plugin",
        )


@contextlib.contextmanager
def added(paths: Iterable[Path]) -> Iterator[None]:
    """Register the plug-ins of these files and folders (--plugin) inside the `with` block. Raises ConfigError."""
    before = dict(_EXTRA)
    try:
        for path in paths:
            add(path)
        yield
    finally:
        _EXTRA.clear()
        _EXTRA.update(before)


def add_plugins(path: str | Path) -> list[str]:
    """Register plug-ins for this process, as --plugin does: of a file, or of a folder. Returns their names. Raises ConfigError."""
    return [plugin.name for plugin in add(Path(path))]


def add(path: Path) -> list[Plugin]:
    """Register the plug-in of a file, or of every *.py of a folder whose name does not begin with `_`. Raises ConfigError."""
    if not path.is_dir():
        return [add_file(path)]
    files = sorted(file for file in path.glob("*.py") if not file.stem.startswith("_"))
    if not files:
        raise ConfigError(f"--plugin {clean(path)}: the folder holds no plug-in", "plug-ins are files NAME.py")
    return [add_file(file) for file in files]


def add_file(path: Path) -> Plugin:
    """Register the plug-in of one file under the file's name. The file's line KIND = "..." names its kind. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"--plugin {clean(path)}: {absence(path)}")
    tree = parse_file(path)
    kind = literal(tree, "KIND", path)
    if not isinstance(kind, str):
        raise ConfigError(
            f'{path}: a plug-in file needs a line with its kind, such as: KIND = "objective"',
            f"kinds: {', '.join(INJECTED)}",
            "if it only holds code shared by plug-ins, let its name begin with _",
        )
    try:
        kind = kind_of(kind)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", *error.hints) from None
    plugin = _read(kind, path.stem, path.resolve(), "")
    _refuse_duplicate(plugins(kind), plugin)
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
    except ModuleNotFoundError:  # a parent package is missing
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"the entry point fmeco.{kind}: {clean(name)} names the module {clean(module)}, which is not installed"
        )
    return _read(kind, name, Path(spec.origin), module)


def _read(kind: str, name: str, file: Path, module: str) -> Plugin:
    """Read one plug-in's declarations from its source. Raises ConfigError that names the file and line."""
    tree = parse_file(file)
    node = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "build"), None)
    if node is None:
        raise ConfigError(f"{file}: a plug-in needs a function `build({', '.join(INJECTED[kind])}, *, ...)`")
    injected = tuple(arg.arg for arg in [*node.args.posonlyargs, *node.args.args])
    if wrong := [arg for arg in injected if arg not in INJECTED[kind]]:
        raise ConfigError(
            f"{file}:{node.lineno}: build() has unknown parameters before `*`: {listing(wrong)}; "
            f"{kind} plug-ins may use: {', '.join(INJECTED[kind])}"
        )
    if node.args.vararg or node.args.kwarg:
        raise ConfigError(f"{file}:{node.lineno}: build() must name every key, without *args or **kwargs")
    fields, groups = _fields(node, file)
    if kind == "optimizers" and "lr" not in fields:
        raise ConfigError(
            f"{file}:{node.lineno}: an optimizer needs a key `lr` for the learning rate, as in: lr: Rate = 1e-3"
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
        folders=bool(literal(tree, "FOLDERS", file)),
        own_folders=bool(literal(tree, "OWN_FOLDERS", file)),
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
        answering=tuple(literal(tree, "ANSWERING", file) or ()),
        combines=literal(tree, "COMBINES", file) or "",
        finetune=literal(tree, "FINETUNE", file) or {},
        finetune_lr=literal(tree, "FINETUNE_LR", file) or FINETUNE_LR,
        layer_decay=literal(tree, "LAYER_DECAY", file) or 1.0,
    )


def _fields(node: ast.FunctionDef, file: Path) -> tuple[dict[str, tuple[Any, Any]], dict[str, KeyGroup]]:
    """Read the user's keys as {key: (type, default)}, and the parameters that bundle several of them. Raises ConfigError."""
    fields: dict[str, tuple[Any, Any]] = {}
    groups: dict[str, KeyGroup] = {}
    for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        where = f"{file}:{arg.lineno}: {arg.arg}"
        if arg.annotation is None:
            raise ConfigError(f"{where} needs a type annotation")
        try:
            group = key_group(arg.annotation, default)
            if group is not None:
                groups[arg.arg], new = group, group.fields
            else:
                new = {arg.arg: (annotation(arg.annotation), ... if default is None else ast.literal_eval(default))}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{where}: {error}", "types: " + ", ".join(VOCABULARY), "defaults must be literals"
            ) from None
        if twice := [key for key in new if key in fields]:
            raise ConfigError(f"{where}: the key {listing(twice)} is defined twice")
        fields |= new
    return fields, groups


def _layout(tree: ast.Module, fields: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    layout = tuple(literal(tree, "LAYOUT", file) or ())
    if unknown := [key for key in layout if key.removesuffix("?") not in fields]:
        raise ConfigError(
            f"{file}: LAYOUT names {listing(unknown)}, but build() has no such key{nearest(unknown[0], fields)}"
        )
    return layout


def is_outside(module: str) -> bool:
    """Whether a module's code belongs to a plug-in outside fmeco: a --plugin file, or an installed package."""
    packages = {named.partition(".")[0] for kind in INJECTED for _, named in _entry_points(kind)}
    return module.startswith(PACKAGE) or module.partition(".")[0] in packages
