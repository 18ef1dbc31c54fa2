"""Print tables as aligned text. Every table of the command line goes through `table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmeco.errors import clean


def table(
    rows: Sequence[Sequence[str]],
    columns: Sequence[str] = (),
    *,
    gap: str = "  ",
    widest: int | None = None,
) -> str:
    """Align rows of cells as text, one line each.

    columns: how each column is aligned, as in a format string: `<` left, `>` right, `>12` right and 12 wide or more.
        Without it the first column is aligned left and the others right.
    widest: a cell that is longer does not widen its column; it moves the rest of its own row.
    """
    if not rows:
        return ""
    columns = columns or ["<", *[">"] * (len(rows[0]) - 1)]
    widths = []
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        longest = max(map(len, cells))
        widths.append(max(int(column[1:] or 0), longest if widest is None else min(longest, widest)))
    if columns[-1].startswith("<"):
        widths[-1] = 0  # nothing follows that would need the spaces
    return "\n".join(
        gap.join(f"{cell:{column[0]}{width}}" for cell, column, width in zip(row, columns, widths, strict=True))
        for row in rows
    )


def metrics_table(title: str, metrics: Mapping[str, float]) -> str:
    """Show metrics by name below a title, one line each."""
    rows = [["  " + clean(name), f"{value:.4f}"] for name, value in metrics.items()]
    return "\n".join([clean(title), *([table(rows, ["<26", "<"], gap=" ", widest=26)] if rows else [])])


def comparison_table(found: Mapping[str, Any]) -> str:
    """Show compared runs, with a sentence on each difference."""
    metric = found["metric"]
    rows = [["run", f"{found['split']} {metric}", "first is better by", "95% interval", "p"]]
    for row in found["runs"]:
        cells = [clean(row["run"]), f"{row['metrics'][metric]:.4f}", "", "", ""]
        if "difference" in row:
            value, low, high = row["difference"]
            p = f"{row['p']:.3g}" if "p" in row else "-"
            cells[2:] = [f"{value:+.4f}", f"{low:+.4f} to {high:+.4f}", p]
        rows.append(cells)
    verdicts = [row["verdict"] for row in found["runs"] if "verdict" in row]
    return "\n".join([table(rows), f"on {found['samples']:,} samples", *verdicts])
