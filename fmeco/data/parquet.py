"""Parquet tables, read by polars (the extra `tables`) into the text that a CSV file of the same table holds."""

from __future__ import annotations

from typing import Any

from fmeco.errors import ConfigError, DataError, clean


def columns(path: str) -> list[str]:
    """The names of the columns; no rows are read."""
    return list(_read(path, "read_parquet_schema"))


def as_csv(path: str, rows: int | None = None) -> str:
    """The table, or its first rows, as CSV text with a header; nulls are empty. Raises DataError for columns that are no text, number or date."""
    try:
        text: str = _read(path, "read_parquet", n_rows=rows).write_csv()
    except _polars().exceptions.PolarsError as error:
        raise DataError(f"{clean(path)}: a column cannot be written as text: {clean(error)}") from None
    return text


def _read(path: str, how: str, **options: Any) -> Any:
    polars = _polars()
    try:
        return getattr(polars, how)(path, **options)
    except (OSError, polars.exceptions.PolarsError) as error:
        raise DataError(f"{clean(path)}: not a Parquet table: {clean(error)}") from None


def _polars() -> Any:
    try:
        import polars
    except ImportError:
        raise ConfigError("Parquet tables need polars", "pip install 'fmeco[tables]'") from None
    return polars
