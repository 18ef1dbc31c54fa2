"""Read Parquet tables with polars (the extra `tables`), as the text of an equivalent CSV file, and write them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmeco.errors import ConfigError, DataError, clean, library_errors, listing
from fmeco.files import disguise


def columns(path: str) -> list[str]:
    """Read the column names, without reading rows. Raises DataError, or ConfigError without polars."""
    return list(_read(path, "read_parquet_schema"))


def as_csv(path: str, rows: int | None = None) -> str:
    """Convert a table to CSV text with a header; nulls become empty fields.

    rows: number of first rows to read; None = all.

    Raises DataError for columns that are not text, numbers or dates, or ConfigError without polars.
    """
    table = _read(path, "read_parquet", n_rows=rows)
    polars = library()
    if strange := [
        name for name, kind in table.schema.items() if kind.is_nested() or kind in (polars.Binary, polars.Object)
    ]:
        raise DataError(
            f"{clean(path)}: the column {listing(strange)} holds lists, structures or bytes, and not text or numbers"
        )
    with library_errors(f"{clean(path)}: a column cannot be written as text", library().exceptions.PolarsError):
        text: str = table.write_csv()
    return text


def _read(path: str, function: str, **options: Any) -> Any:
    polars = library()
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if what := disguise(file.read(64)):
            raise DataError(f"{clean(path)}: {what}")
    with library_errors(f"{clean(path)}: not a Parquet table", OSError, polars.exceptions.PolarsError):
        return getattr(polars, function)(path, **options)


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows to a table. Columns in which only some rows have a value are empty in the others. Raises OSError."""
    library().DataFrame(rows, infer_schema_length=None).write_parquet(path)


def library() -> Any:
    """Import polars. Raises ConfigError if it is not installed."""
    try:
        import polars
    except ImportError:
        raise ConfigError("Parquet tables need polars", "pip install 'fmeco[tables]'") from None
    return polars
