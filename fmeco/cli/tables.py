"""Format tables as aligned text. Every table of the command line goes through `table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmeco.errors import clean
from fmeco.evaluation.verdict import SOURCE, better


def table(
    rows: Sequence[Sequence[str]],
    columns: Sequence[str] = (),
    *,
    gap: str = "  ",
    widest: int | None = None,
) -> str:
    """Align rows of cells as text, one line per row.

    columns: alignment of each column, as in a format string: `<` left, `>` right, `>12` right and at least 12 wide.
        Default: the first column left, the others right.
    gap: text between columns.
    widest: characters; a longer cell does not widen its column, but shifts the rest of its row.
    """
    if not rows:
        return ""
    columns = columns or ["<", *[">"] * (len(rows[0]) - 1)]
    widths = []
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        longest = max(map(len, cells))
        widths.append(max(int(column[1:] or 0), longest if widest is None else min(longest, widest)))
    if columns[-1].startswith("<"):
        widths[-1] = 0  # no padding after the last column
    return "\n".join(
        gap.join(f"{cell:{column[0]}{width}}" for cell, column, width in zip(row, columns, widths, strict=True))
        for row in rows
    )


def metrics_table(title: str, metrics: Mapping[str, float], directions: Mapping[str, str]) -> str:
    """Format metrics by name below a title, one per line.

    directions: "max" for a metric that is better if it is higher, else "min".
    """
    words = {"max": "higher is better", "min": "lower is better"}
    rows = [
        ["  " + clean(name), f"{value:.4f}", words.get(directions.get(name, ""), "")] for name, value in metrics.items()
    ]
    lines = table(rows, ["<26", "<", "<"], gap=" ", widest=26).splitlines()
    return "\n".join([clean(title), *(line.rstrip() for line in lines)])


def figure_line(found: Mapping[str, Any]) -> str:
    """Say in one line what was measured on a split, as `evaluation.describe` returns it."""
    on = f"{found['samples']:,} {found['split']} samples"
    if found["value"] is None:
        return f"{found['split']}: {on}"
    between = " (95% interval {:.4f} to {:.4f})".format(*found["interval"]) if found["interval"] else ""
    return f"{found['split']}: {clean(found['metric'])} {found['value']:.4f}{between} on {on}"


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Format compared runs, with the verdict on each difference."""
    metric = comparison["metric"]
    rows = [["run", f"{comparison['split']} {metric}", "the first is", "95% interval", "p"]]
    for row in comparison["runs"]:
        name = "the source as it is: " if row.get("name") == SOURCE else ""
        cells = [name + clean(row["run"]), f"{row['metrics'][metric]:.4f}", "", "", ""]
        if "difference" in row:
            p = f"{row['p']:.3g}" if "p" in row else "-"
            cells[2:] = [*better(row["difference"]), p]
        rows.append(cells)
    verdicts = [row["verdict"] for row in comparison["runs"] if "verdict" in row]
    return "\n".join([table(rows), f"on {comparison['samples']:,} samples", *verdicts])
