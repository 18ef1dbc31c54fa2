"""Read text files, and split tables in them into cells."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Sequence
from typing import Any

from fmeco.core import DECODE_RULE, DataError, clean
from fmeco.data.delimiters import SAMPLE
from fmeco.files import absence, disguise, regular

SWALLOWED = 5  # lines of a quoted cell from which it seems to have swallowed rows
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: str) -> str:
    """Read a UTF-8 text file, with every line ending as a newline. Raises DataError that says what the file is instead."""
    try:
        with open(path, "rb", opener=regular) as file:
            body = file.read()
    except OSError as error:
        reason = absence(path) if not os.path.isfile(path) else error.strerror
        raise DataError(f"{clean(path)}: {reason}") from None
    if what := disguise(body[:64]):
        raise DataError(f"{clean(path)}: {what}")
    if body.startswith(_UTF_16) or b"\0" in body:
        raise DataError(f"{clean(path)}: not UTF-8 text: it holds zero bytes, as UTF-16 does", "save it as UTF-8")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{clean(path)}: not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def beginning(path: str) -> str:
    """Read the first lines of a file, which may be anything. Raises OSError."""
    with open(path, encoding="utf-8-sig", errors="replace", opener=regular) as file:
        return file.read(SAMPLE)


def cells_of(text: str, path: str, char: str, decode: int = DECODE_RULE) -> Any:
    """Split the text of a table into rows of cells, as the reader of Python's csv module.

    decode: by rule 1, quotes after a delimiter and a space belong to the cell.
    Raises DataError for a first line such as "sep=;", which is no header.
    """
    if re.match(r'"?sep=.', text, re.IGNORECASE):
        raise DataError(
            f"{clean(path)}:1: the first line names the separator of the cells, and is no header", "remove it"
        )
    csv.field_size_limit(1 << 30)  # the default limit is too short for documents
    spaces = decode > 1 and f'{char} "' in text
    return csv.reader(io.StringIO(text, newline=""), delimiter=char, strict=True, skipinitialspace=spaces)


def check_quotes(rows: Sequence[Sequence[str]], path: str, char: str, first: int) -> None:
    """Check that no quoted cell holds lines that look like rows: then a quote is missing, and the cell swallowed the rows.

    first: row number of the first row. Raises DataError that names the row.
    """
    for number, row in enumerate(rows, first):
        for cell in row:
            lines = cell.split("\n")[1:-1]
            if len(lines) >= SWALLOWED and all(line.count(char) == len(row) - 1 for line in lines) and len(row) > 1:
                raise DataError(
                    f"{clean(path)}: row {number} has a quoted cell of {len(lines) + 2} lines that look like rows: a quote may be "
                    "missing in it, or too many",
                    "write a quote within a quoted cell twice",
                    "if the cell is meant as it is, save the file as JSONL or Parquet",
                )
