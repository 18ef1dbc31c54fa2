"""Define the parts of a report's page. Objectives make them of their rows, and `fmeco/reports` draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SHOWN = 12  # samples in a `Cases`

Cell = str | int | float | None
Point = tuple[float, float]


@dataclass(frozen=True)
class Table:
    """Show figures in rows.

    columns: their names.
    rows: as many cells each; None is left empty. A float gets three decimals.
    note: sentence below.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Show lines, or points, over one pair of axes.

    across, up: what the axes are.
    lines: name -> points (x, y), by rising x if they are connected.
    connected: draw lines; otherwise points alone.
    diagonal: also draw the line on which both axes agree.
    note: sentence below.
    """

    title: str
    across: str
    up: str
    lines: Mapping[str, tuple[Point, ...]]
    connected: bool = True
    diagonal: bool = False
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """Show how often each class was taken for each other one.

    names: of the C classes.
    counts: of samples; a row per true class, a column per predicted one.
    note: sentence below.
    """

    title: str
    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Cases:
    """Show single samples, such as the worst mistakes.

    at: positions in the rows.
    captions: what to say of each.
    note: sentence below.
    """

    title: str
    at: tuple[int, ...]
    captions: tuple[str, ...]
    note: str = ""


Part = Table | Curves | Matrix | Cases
