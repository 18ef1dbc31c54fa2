"""Python's own documentation: docstrings of the standard library, by package. Real English text that needs no download."""

from __future__ import annotations

import ast
import inspect
import sysconfig
from pathlib import Path
from typing import Annotated

from fmeco.core import Data, DataError, DataSpec, Splitting, Without, listing
from fmeco.datasets import _documents, _texts, _tokens

MODALITY = "text"

STARTER = {"backbone": "transformer"}
MODULES = "modules"  # the class of what is no package but a file of its own

# Packages that every Python has, with documentation enough; those of a version differ a little from those of another.
PACKAGES = (
    *("asyncio", "concurrent", "curses", "dbm", "email", "encodings", "html", "http", "importlib", "json"),
    *(
        "logging",
        MODULES,
        "multiprocessing",
        "re",
        "sqlite3",
        "tomllib",
        "unittest",
        "urllib",
        "wsgiref",
        "xml",
        "zoneinfo",
    ),
)
SHORTEST = 20  # characters of a docstring that says something


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    splitting: Annotated[Splitting, Without("group_split")] = Splitting(),
    vocabulary: int | None = None,
    length: int | None = None,
    lowercase: bool | None = None,
) -> Data:
    found = _documents.Documents([], [], [])
    chosen = splitting.classes
    for package in PACKAGES if chosen is None else sorted(set(map(str, chosen)) & set(PACKAGES)):
        found = found + _documented(package)
    if not found.texts:
        raise DataError(
            "stdlib_docs: this Python has no sources of these packages", f"packages: {listing(PACKAGES, 30)}"
        )
    return _texts.build_texts(
        known,
        found,
        None,
        _tokens.Wanted(vocabulary, None, lowercase, length),
        _documents.Layout(),
        where="stdlib_docs",
        whole=whole,
        splitting=splitting,
    )


def _documented(package: str) -> _documents.Documents:
    """The docstrings of a package's modules, classes and functions, each text once."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, str] = {}
    for file in sorted(root.glob("*.py") if package == MODULES else (root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
                if len(text) >= SHORTEST:
                    line = 1 if isinstance(node, ast.Module) else node.lineno
                    texts.setdefault(text, f"{file.relative_to(root)}:{line}")
    return _documents.Documents(list(texts), list(texts.values()), [package] * len(texts))
