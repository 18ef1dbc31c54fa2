"""Docstrings of Python's standard library, with the package as class: real English text, no download."""

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
MODULES = "modules"  # class of modules that are single files, not packages

# Packages that every Python has, and that have enough docstrings; the docstrings differ a little between versions.
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
SHORTEST = 20  # skip docstrings with fewer characters


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    splitting: Annotated[Splitting, Without("group_split")] = Splitting(),
    vocabulary: int | None = None,
    length: int | None = None,
    lowercase: bool | None = None,
) -> Data:
    documents = _documents.Documents([], [], [])
    chosen = splitting.classes
    for package in PACKAGES if chosen is None else sorted(set(map(str, chosen)) & set(PACKAGES)):
        documents = documents + _documented(package)
    if not documents.texts:
        raise DataError(
            "stdlib_docs: this Python comes without the source files of these packages",
            f"packages: {listing(PACKAGES, 30)}",
        )
    return _texts.build_texts(
        known,
        documents,
        None,
        _tokens.Wanted(vocabulary, None, lowercase, length),
        _documents.Layout(),
        where="stdlib_docs",
        whole=whole,
        splitting=splitting,
    )


def _documented(package: str) -> _documents.Documents:
    """Collect the docstrings of a package's modules, classes and functions, each text once."""
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
