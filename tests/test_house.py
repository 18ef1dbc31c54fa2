"""The floor plan: layers, chains of imports, sizes of rooms, and what the core may not name."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import fmeco as api
from fmeco.core.target import KINDS
from fmeco.plugins import registry

PACKAGE = Path(api.__file__).parent
PLUGIN_FOLDERS = ("datasets", "backbones", "objectives", "augment", "optimizers", "schedules", "strategies")
# Low to high. A folder imports from layers below its own, and within its layer from what stands before it.
LAYERS = [
    ["_version", "errors", "log", "files", "download"],
    ["plugins", "core"],
    ["data", "nn", "config"],
    ["checkpoints", *PLUGIN_FOLDERS],
    ["reports", "distributed", "features", "assembly", "training"],
    ["inference", "evaluation", "testing"],
    ["cli"],
]
ORDER = [folder for layer in LAYERS for folder in layer]
FOR_PLUGINS = ("core", "nn", "errors", "download")  # what a plug-in may import beside its own folder
ALSO_FOR_PLUGINS = {"fmeco.data.parquet", "fmeco.data.delimiters", "fmeco.data.decoded_cache", "fmeco.files"}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(["fmeco", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return {name: tree for name, tree in found.items() if name not in ("fmeco", "fmeco.__main__")}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """The modules of fmeco that a module imports, also inside functions, but not for type checkers alone."""
    tree, known = modules()[module], modules()
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in inner}
    return frozenset(name for name in found if name in known) - {module}


def folder(module: str) -> str:
    return module.split(".")[1]


def longest(graph: dict[str, set[str]]) -> list[str]:
    """The longest chain of imports. Fails for a cycle."""
    best: dict[str, list[str]] = {}

    def walk(name: str, path: tuple[str, ...]) -> list[str]:
        assert name not in path, f"a cycle of imports: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in best:
            best[name] = [name, *max((walk(x, (*path, name)) for x in sorted(graph[name])), key=len, default=[])]
        return best[name]

    return max((walk(name, ()) for name in sorted(graph)), key=len)


def test_every_folder_has_a_place_in_a_layer() -> None:
    assert {folder(module) for module in modules()} == set(ORDER)


def test_imports_go_one_way() -> None:
    for module in modules():
        for used in imports(module):
            if folder(used) != folder(module):
                assert ORDER.index(folder(used)) < ORDER.index(folder(module)), f"{module} imports {used}"


def test_plugins_import_the_vocabulary_and_their_own_folder_alone() -> None:
    for module in modules():
        if folder(module) in PLUGIN_FOLDERS:
            strange = {used for used in imports(module) if folder(used) not in (*FOR_PLUGINS, folder(module))}
            assert not strange - ALSO_FOR_PLUGINS, f"{module} imports {strange}"


def test_chains_of_imports_are_short_and_without_cycles() -> None:
    chain = longest({module: set(imports(module)) for module in modules()})
    assert len(chain) <= 15, " -> ".join(chain)
    rooms: dict[str, set[str]] = {}
    for module in modules():
        rooms.setdefault(folder(module), set()).update(folder(used) for used in imports(module))
    chain = longest({name: used - {name} for name, used in rooms.items()})
    assert len(chain) <= 11, " -> ".join(chain)


def test_a_file_is_one_room_and_a_function_one_thought() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.body[0].lineno < 60, f"{path}: {node.name}"
    for room in {path.parent for path in PACKAGE.rglob("*.py")}:
        files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        assert room.name in PLUGIN_FOLDERS or len(files) <= 12, f"{room} has {len(files)} files"


def test_a_folder_says_what_lives_there_and_imports_nothing_else() -> None:
    for path in PACKAGE.rglob("*/__init__.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for used in imports(".".join(["fmeco", *path.parent.relative_to(PACKAGE).parts])):
            allowed = path.parent.name == "core" and folder(used) in ("core", "errors", "log", "plugins")
            assert allowed, f"{path} imports {used}"


# ---------------------------------------------------------------- names of the plug-ins' world

# Words that also mean something else in code: as identifiers they are free, as strings in comparisons they are not.
ORDINARY = {
    "text",
    "number",
    "class",
    "table",
    "series",
    "image",
    "images",
    "events",
    "digits",
    "none",
    "mask",
    "masks",
    "boxes",
}
# (module, word): why it may be named there.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("fmeco.cli.init", "digits"): "the example that `init` writes where no dataset is named",
    ("fmeco.cli.init", "resnet18"): "the backbone of that example",
    ("fmeco.config.explain", "text"): "the word for a string in messages",
    **{
        (f"fmeco.core.{module}", form): "a form of riders"
        for module in ("data", "geometry")
        for form in ("mask", "boxes")
    },
    ("fmeco.nn.detection.fcos", "torchvision"): "the library, which has non-maximum suppression",
    ("fmeco.nn.layers", "mlp"): "the block of that name, which plug-ins share",
    ("fmeco.nn.libraries", "torchvision"): "the library, whose import fails in a way of its own",
}


def words() -> set[str]:
    """Kinds of targets, modalities, datasets and architectures, as the registry has them."""
    datasets = registry.plugins("datasets").values()
    named = {plugin.name for plugin in datasets} | {plugin.modality for plugin in datasets}
    for kind in ("datasets", "backbones"):
        for plugin in registry.plugins(kind).values():
            named |= {plugin.name, *plugin.names}
    return {*named, *KINDS} - {""}


def identifiers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg


def strings(tree: ast.Module) -> Iterator[str]:
    """Strings that code goes by: in comparisons, as keys, as defaults, and assigned at the top of a module."""

    def inside(node: ast.AST | None) -> Iterator[str]:
        for part in ast.walk(node) if node is not None else ():
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                yield from inside(side)
        elif isinstance(node, ast.MatchValue):
            yield from inside(node.value)
        elif isinstance(node, ast.Dict):
            for key in node.keys:
                yield from inside(key)
        elif isinstance(node, ast.Subscript):
            yield from inside(node.slice)
        elif isinstance(node, ast.arguments):
            for default in (*node.defaults, *node.kw_defaults):
                yield from inside(default)
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            yield from inside(node.value)


OUTSIDE = [module for module in modules() if folder(module) not in PLUGIN_FOLDERS]


@pytest.mark.parametrize("module", OUTSIDE)
def test_the_core_names_no_kind_modality_dataset_or_architecture(module: str) -> None:
    if module == "fmeco.core.target":  # the one table of target kinds
        return
    known = words()
    named = {part for name in identifiers(modules()[module]) for part in (name.lower(), *name.lower().split("_"))}
    found = ((named & known) - ORDINARY) | (set(strings(modules()[module])) & known)
    unexcused = {word for word in found if (module, word) not in EXCEPTIONS}
    assert not unexcused, f"{module} names {sorted(unexcused)}"


def test_exceptions_are_still_needed() -> None:
    for module, word in EXCEPTIONS:
        tree = modules()[module]
        assert word in {*strings(tree), *(part for name in identifiers(tree) for part in name.lower().split("_"))}
