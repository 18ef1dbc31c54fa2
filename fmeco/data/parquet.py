"""Read Parquet tables with polars (the extra `tables`), as the text of an equivalent CSV file."""

from __future__ import annotations

from typing import Any

from fmeco.errors import ConfigError, DataError, clean


def columns(path: str) -> list[str]:
    """Read the column names, without reading rows. Raises DataError, or ConfigError without polars."""
    return list(_read(path, "read_parquet_schema"))


def as_csv(path: str, rows: int | None = None) -> str:
    """Convert a table to CSV text with a header; nulls become empty fields.

    rows: number of first rows to read; None = all.

    Raises DataError for columns that are not text, numbers or dates, or ConfigError without polars.
    """
    try:
        text: str = _read(path, "read_parquet", n_rows=rows).write_csv()
    except _polars().exceptions.PolarsError as error:
        raise DataError(f"{clean(path)}: a column cannot be written as text: {clean(error)}") from None
    return text


def _read(path: str, function: str, **options: Any) -> Any:
    polars = _polars()
    try:
        return getattr(polars, function)(path, **options)
    except (OSError, polars.exceptions.PolarsError) as error:
        raise DataError(f"{clean(path)}: not a Parquet table: {clean(error)}") from None


def _polars() -> Any:
    try:
        import polars
    except ImportError:
        raise ConfigError("Parquet tables need polars", "pip install 'fmeco[tables]'") from None
    return polars
