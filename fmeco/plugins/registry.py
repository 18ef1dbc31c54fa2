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
from typing import Annotated, Any, Literal

from annotated_types import Ge as Ge
from annotated_types import Gt as Gt
from annotated_types import Le as Le
from annotated_types import Lt as Lt
from pydantic import BaseModel, ConfigDict, Field, create_model

from fmeco.errors import ConfigError, FmecoError, clean, listing, nearest

Scalar = str | int | float | bool | None


def Doc(text: str) -> Any:
    """Help for a key: `lr: Annotated[float, Doc("step size"), Gt(0)] = 1e-3`."""
    return Field(description=text)


FilePath = str  # in a signature it marks a file or folder: a run stores it absolute, a checkpoint relative
Ref = str  # in a signature it marks a checkpoint, or published weights: `build` is handed a core.Teacher, or None
# A section of its own inside a plug-in's: `tasks: dict[str, ObjectiveSection]`. `build` is handed builders: each takes the
# injected values by name and returns what its section describes.
ObjectiveSection = Callable[..., Any]
NESTED = {"ObjectiveSection": "objectives"}

# Keys that several plug-ins share are written once, here; a signature says `classes: Classes = None`.
Classes = Annotated[list[str | int] | None, Doc("use only these classes, in this order; null = all, sorted by name")]
LimitPerClass = Annotated[int | None, Doc("at most this many training samples per class (few-shot); null = all"), Gt(0)]
LimitSeed = Annotated[int, Doc("which samples `limit_per_class` draws; another number draws others"), Ge(0)]
ValFraction = Annotated[
    float, Doc("share of each class held out for validation, chosen by name, not by order"), Gt(0), Lt(1)
]
TestFraction = Annotated[float, Doc("share of each class held out for testing; 0 = no test split"), Ge(0), Lt(1)]
Fold = Annotated[
    dict[str, int] | None,
    Doc("{fold: 1, of: 5}: validate on that fold of a cross-validation instead of on val_fraction"),
]
TeacherMomentum = Annotated[
    float,
    Doc(
        "what the teacher keeps of itself at the first step; it rises to 1 over the run. 0.99 looks back over about 100 "
        "steps; runs of a hundred thousand steps take 0.996"
    ),
    Ge(0),
    Lt(1),
]
ImageSize = Annotated[
    int | None,
    Doc("height and width of the model's input, pixels; null = the checkpoint's, else the default"),
    Gt(0),
]
Color = Annotated[Literal["rgb", "gray"] | None, Doc("colour mode; null = the checkpoint's, else that of the data")]

Rate = float  # in a signature it marks the learning rate, which a user may leave to a range test
_RATE = Annotated[
    Annotated[float, Gt(0)] | Literal["auto"],
    Doc("learning rate; auto = by a range test of a few steps, which leaves no trace"),
]

_VOCABULARY: dict[str, Any] = {
    **{t.__name__: t for t in (bool, int, float, str, list, dict, tuple)},
    **{"None": None, "Any": Any, "Annotated": Annotated, "Literal": Literal, "Scalar": Scalar},
    **{"Doc": Doc, "Gt": Gt, "Ge": Ge, "Lt": Lt, "Le": Le},
    **{
        "Classes": Classes,
        "LimitPerClass": LimitPerClass,
        "LimitSeed": LimitSeed,
        "ValFraction": ValFraction,
    },
    **{"TestFraction": TestFraction, "Fold": Fold, "ImageSize": ImageSize, "Color": Color},
    **{"TeacherMomentum": TeacherMomentum, "FilePath": FilePath, "Ref": Ref, "Rate": _RATE},
    **dict.fromkeys(NESTED, Any),
}

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
_FUNCTIONS = {"optimizers": "optimizers.optim", "schedules": "optimizers.optim", "strategies": "strategies.transfer"}
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
    tree = _parse(path)
    kind = _literal(tree, "KIND", path)
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
            for node in _parse(file).body
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
    tree = _parse(file)
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
            annotation = _annotation(arg.annotation)
            fields[arg.arg] = (annotation, ... if default is None else ast.literal_eval(default))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{where}: {error}", "types: " + ", ".join(_VOCABULARY), "defaults are literals"
            ) from None
    names = _literal(tree, "NAMES", file) or ()
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
        suffixes=tuple(_literal(tree, "SUFFIXES", file) or ()),
        qualified=bool(_literal(tree, "QUALIFIED", file)),
        open=bool(_literal(tree, "OPEN", file)),
        tables=bool(_literal(tree, "TABLES", file)),
        renamed=_literal(tree, "RENAMED", file) or {},
        paths=tuple(
            arg.arg
            for arg in node.args.kwonlyargs
            if _mentions(arg.annotation, "FilePath") or _mentions(arg.annotation, "Ref")
        ),
        refs=tuple(arg.arg for arg in node.args.kwonlyargs if _mentions(arg.annotation, "Ref")),
        nested={arg.arg: k for arg in node.args.kwonlyargs for n, k in NESTED.items() if _mentions(arg.annotation, n)},
    )


def schema(name: str, fields: Mapping[str, Any]) -> type[BaseModel]:
    """A strict pydantic model: unknown keys, wrong types and non-finite numbers are errors."""
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=())
    model: type[BaseModel] = create_model(name, __config__=config, **fields)
    return model


@functools.cache  # one file holds all optimizers
def _tree(text: str, name: str) -> ast.Module:
    return ast.parse(text, name)


def _parse(file: Path) -> ast.Module:
    try:
        return _tree(file.read_text("utf-8"), str(file))
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None


def _literal(tree: ast.Module, name: str, file: Path) -> Any:
    """The value of a top-level `NAME = literal`, or None."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(node, ast.Assign | ast.AnnAssign):
            try:
                return ast.literal_eval(node.value) if node.value is not None else None
            except ValueError:
                raise ConfigError(
                    f"{file}:{node.lineno}: {name} must be a literal: it is read without importing the file"
                ) from None
    return None


def _annotation(node: ast.expr) -> Any:
    """Evaluate a type annotation over `_VOCABULARY`, without running any code of the file."""
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            return node.value
        case ast.Name(id=name) if name in _VOCABULARY:
            return _VOCABULARY[name]
        case ast.UnaryOp(op=ast.USub()):
            return ast.literal_eval(node)
        case ast.Tuple(elts=items):
            return tuple(_annotation(item) for item in items)
        case ast.List(elts=items):
            return [_annotation(item) for item in items]
        case ast.Subscript(value=base, slice=item):
            return _annotation(base)[_annotation(item)]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _annotation(left) | _annotation(right)
        case ast.Call(func=ast.Name(id=name), args=args) if name in ("Doc", "Gt", "Ge", "Lt", "Le"):
            return _VOCABULARY[name](*(ast.literal_eval(arg) for arg in args))
    raise ValueError(f"cannot read the type `{ast.unparse(node)}`")


def _mentions(node: ast.expr | None, name: str) -> bool:
    return node is not None and any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


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
