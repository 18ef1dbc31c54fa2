"""Read documents from JSONL, CSV, TSV, Parquet and plain text files."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fmeco.core import DECODE_RULE, ConfigError, DataError, Given, clean, listing, nearest
from fmeco.data import parquet
from fmeco.data.delimiters import delimiter
from fmeco.datasets import _columns, _groups, _text_files
from fmeco.datasets._splits import Indices
from fmeco.files import absence

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")

LONG = 30  # lines of a block, on average, from which a file of text probably has a text per line

Documented = Literal["auto", "line", "block"]


class Layout(NamedTuple):
    """Hold the keys of the config that say where a file has its texts and labels.

    text: column, or key of JSONL, of the text; several are joined.
    label: column, or key of JSONL, of the label; None = no labels.
    columns: names of the columns of a table without a header.
    documents: whether a document of a .txt file is a line or a block of lines.
    group: column of the groups, or a regular expression that finds one in the file's name.
    decode: decode rule of the texts.
    """

    text: str | tuple[str, ...] = "text"
    label: str | None = None
    columns: tuple[str, ...] | None = None
    documents: Documented = "auto"
    group: str | None = None
    decode: int = DECODE_RULE

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the names of the columns of the text."""
        return (self.text,) if isinstance(self.text, str) else self.text


class Documents(NamedTuple):
    """Hold N texts.

    names: where each text is, FILE:LINE.
    labels: label of each text, "" for a text without one; None if the files have no labels.
    others: the files' other columns.
    groups: group of each text, if the config asks for groups.
    """

    texts: list[str]
    names: list[str]
    labels: list[str] | None
    others: Mapping[str, list[str]] = {}
    groups: list[str] | None = None

    def __add__(self, other: Documents) -> Documents:  # type: ignore[override]  # unlike tuples
        if (self.labels is None) != (other.labels is None):
            raise DataError(f"{other.names[0]}: some of the files have labels and others do not")
        labels = None if self.labels is None or other.labels is None else self.labels + other.labels
        others = {name: values + other.others[name] for name, values in self.others.items() if name in other.others}
        groups = None if self.groups is None or other.groups is None else self.groups + other.groups
        return Documents(self.texts + other.texts, self.names + other.names, labels, others, groups)


def read_documents(path: str, layout: Layout) -> Documents:
    """Read the documents of a file, by its suffix.

    Raises DataError that names file and line, ConfigError for a column that the file does not have.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if not file.is_file():
        raise DataError(f"{clean(path)}: {absence(path)}")
    if suffix not in SUFFIXES:
        raise DataError(f"{clean(path)}: texts are read from {', '.join(SUFFIXES)}")
    content = parquet.as_csv(path) if suffix == ".parquet" else _text_files.read_text(path)
    if suffix == ".txt":
        read = Documents(*_plain(content, path, layout), None)
    else:
        if suffix == ".parquet":
            layout = layout._replace(columns=None)  # Parquet always has a header
        lines = (
            _json_lines(content, path, layout.decode)
            if suffix in (".jsonl", ".ndjson")
            else _rows(content, path, layout, suffix)
        )
        read = _fields(lines, path, layout)
    if not read.texts:
        raise DataError(f"{clean(path)}: no texts in this file")
    if layout.group is None:
        return read
    rows = [name.rpartition(":")[2] for name in read.names]
    groups = _groups.find(read.others, layout.group, [file.name] * len(rows), path, rows)
    return read._replace(groups=groups.names, others={**read.others, groups.called: groups.names})


def given_documents(rows: Given, layout: Layout) -> Documents:
    """Read the documents of rows that were passed in Python. Raises ConfigError for an absent column."""
    table = {name: _columns.as_text(values) for name, values in _columns.passed(rows).items()}
    lines = (
        (number, dict(zip(table, row, strict=True))) for number, row in enumerate(zip(*table.values(), strict=True))
    )
    read = _fields(lines, str(rows), layout)
    return read._replace(names=_columns.row_names(rows, len(read.texts)))


def _plain(content: str, path: str, layout: Layout) -> tuple[list[str], list[str]]:
    """Read plain text: a document per line, or per block of lines between empty lines. Returns (texts, names).

    Decode rule 1 also ends a line at a form feed and at Unicode's line separators, which may stand within a sentence.
    """
    lines = content.splitlines() if layout.decode == 1 else content.removesuffix("\n").split("\n")
    documents, first = layout.documents, 1
    if layout.decode > 1:  # empty lines at the ends separate nothing
        while lines and not lines[-1].strip():
            lines.pop()
        while lines and not lines[0].strip():
            lines.pop(0)
            first += 1
    empty = sum(not line.strip() for line in lines)
    if layout.decode > 1 and documents == "auto" and 0 < empty * LONG < len(lines):
        raise DataError(
            f"{clean(path)}: {len(lines) - empty:,} lines with {empty:,} empty ones between them: is a text a line, or a block of lines?",
            "say so: dataset.documents=line or dataset.documents=block",
        )
    blocks = documents == "block" or (documents == "auto" and empty > 0)
    texts: list[list[str]] = []
    starts: list[int] = []
    fresh = True
    for number, line in enumerate(lines, first):
        if not line.strip():
            fresh = True
        elif fresh or not blocks:
            texts.append([line])
            starts.append(number)
            fresh = False
        else:
            texts[-1].append(line)
    return ["\n".join(text) for text in texts], [f"{path}:{number}" for number in starts]


_QUOTED = re.compile(r'(?m)(?:^|\t)"[^"\t\n]*""')  # a quoted cell with a quote in it, as programs write it in TSV, too

Row = tuple[int, Mapping[str, Any]]  # line, values by name


def _json_lines(content: str, path: str, decode: int) -> Iterator[Row]:
    """Yield the objects of a JSONL file. Raises DataError that names file and line.

    decode: by rule 1, the last of several equal keys counts.
    """
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=_with_each_key_once if decode > 1 else None)
                if "\\u" in line:  # an escape may stand for half of a character
                    json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"{clean(path)}:{number}: an escape such as \\ud83d is half of a character, and its other half is missing",
                    "correct the line, or remove it",
                ) from None
            except ValueError as error:
                raise DataError(f"{clean(path)}:{number}: not valid JSON: {clean(error)}") from None
            except RecursionError:
                raise DataError(f"{clean(path)}:{number}: JSON that is nested too deeply") from None
            if not isinstance(row, dict):
                raise DataError(f'{clean(path)}:{number}: expected an object, as in {{"text": ...}}')
            yield number, row


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON. Raises ValueError for a key that appears twice, of which one value would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key '{twice}' appears more than once")
    return made


def _rows(content: str, path: str, layout: Layout, suffix: str) -> Iterator[Row]:
    """Yield the rows of a CSV file, or of a TSV file, which has no quotes. Raises DataError that names file and line."""
    if suffix == ".tsv" and not (layout.decode > 1 and _QUOTED.search(content)):
        csv.field_size_limit(1 << 30)  # the default limit is too short for documents
        char = "\t"
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=char, quoting=csv.QUOTE_NONE)
    else:
        char = "," if suffix == ".parquet" else "\t" if suffix == ".tsv" else delimiter(content)
        reader = _text_files.cells_of(content, path, char, layout.decode)
    header, before, rows = layout.columns, 0, 0
    try:
        for row in reader:
            if not row:
                continue
            if header is not None and tuple(row) == header and layout.decode > 1 and (rows or layout.columns is None):
                raise DataError(f"{clean(path)}:{reader.line_num}: the row repeats the header", "remove it")
            if header is None or (tuple(row) == header):
                header = tuple(name.strip() for name in row)
                if layout.decode > 1 and (twice := {name for name in header if header.count(name) > 1}):
                    raise DataError(f"{clean(path)}:1: the column {listing(twice)} appears more than once")
                continue
            if len(row) != len(header):
                hint = "name the columns of a table without a header: dataset.columns=[text, label]"
                raise DataError(
                    f"{clean(path)}:{reader.line_num}: {len(row)} values, but the table has {len(header)} columns", hint
                )
            if layout.decode > 1 and suffix == ".csv" and reader.line_num - before > _text_files.SWALLOWED:
                _text_files.check_quotes([row], path, char, before + 1)
            before, rows = reader.line_num, rows + 1
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{clean(path)}:{reader.line_num}: not a valid table: {error}") from None


def _fields(rows: Iterable[Row], path: str, layout: Layout) -> Documents:
    """Collect text, label and other columns of rows. Raises ConfigError for an absent column, DataError for a bad text."""
    texts: list[str] = []
    names: list[str] = []
    labels: list[str] = []
    others: dict[str, list[str]] = {}
    for number, row in rows:
        for name in (*layout.texts, *([layout.label] if layout.label is not None else [])):
            if name not in row:
                key = "text" if name in layout.texts else "label"
                hints = ["dataset.label: null reads the file without labels"] if key == "label" else []
                if not Path(path).suffix.lower().endswith("l"):
                    hints.append("name the columns of a table without a header: dataset.columns=[text, label]")
                raise ConfigError(
                    f"{clean(path)}:{number}: dataset.{key}: no '{clean(name)}'{nearest(name, row)}; it has: {listing(list(row), 20)}",
                    *hints,
                )
        texts.append(_text(row, layout, path, number))
        names.append(f"{path}:{number}")
        if layout.label is not None:
            value = row[layout.label]
            if isinstance(value, dict):
                raise DataError(f"{clean(path)}:{number}: the label is an object, and not a text or number")
            labels.append(
                "" if value is None else "|".join(map(str, value)) if isinstance(value, list) else str(value).strip()
            )
        for name, value in row.items():
            if name not in layout.texts and isinstance(value, str | int | float):
                if name not in others:
                    others[name] = [""] * (len(texts) - 1)
                others[name].append(str(value).strip())
        for values in others.values():
            values += [""] * (len(texts) - len(values))
    others = _columns.grouping(others, [layout.group] if layout.group is not None else [])
    return Documents(texts, names, labels if layout.label is not None else None, others)


def _text(row: Mapping[str, Any], layout: Layout, path: str, number: int) -> str:
    """Return the text of a row; of several columns, those that are not empty, each after its name.

    Raises DataError for values that are not text.
    """
    several = not isinstance(layout.text, str)
    parts: list[str] = []
    for name in layout.texts:
        value = row[name]
        if several and value is None:
            continue
        if not isinstance(value, str):
            raise DataError(f"{clean(path)}:{number}: '{clean(name)}' is not a string")
        if not several:
            return value
        if value.strip():
            parts.append(f"{name}: {value.strip()}")
    return "\n".join(parts)


def merged(files: Mapping[str, Sequence[str]], layout: Layout) -> tuple[Documents, dict[str, Indices]]:
    """Read the files of each split. Returns (all documents, the positions of each split's documents)."""
    every: list[Documents] = []
    parts: dict[str, Indices] = {}
    count = 0
    for part, paths in files.items():
        start = count
        for path in paths:
            every.append(
                read_documents(path, layout if not path.lower().endswith(".txt") else layout._replace(label=None))
            )
            count += len(every[-1].texts)
        parts[part] = np.arange(start, count)
    total = every[0]
    for documents in every[1:]:
        total = total + documents
    return total, parts
