"""Write report.html: the curves, metrics and config of a run in one file."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmeco.errors import clean
from fmeco.files import replacing
from fmeco.reports.metrics_files import read_metrics


def report(run: Path) -> None:
    """Write RUN/report.html: curves of loss and metrics, the last evaluation and the config.

    The file needs no network: it loads nothing else.
    """
    logged = read_metrics(run)
    trained = [line for line in logged if line["kind"] == "train"]
    validated = [line for line in logged if line["kind"] == "val"]
    names = [
        name
        for name in (validated[-1] if validated else {})
        if name not in ("kind", "step", "epoch") and "/" not in name
    ]
    range_lines = [{**line, "step": math.log10(line["lr"])} for line in logged if line["kind"] == "range"]
    charts = [_chart("range test: loss over log10 of the learning rate", range_lines, "loss", across="log10(lr)")]
    charts += [_chart("training loss", trained, "loss")] + [
        _chart(f"validation {name}", validated, name) for name in names
    ]
    table = "".join(
        f"<tr><td>{html.escape(clean(name))}</td><td>{value:.4f}</td></tr>"
        for name, value in (validated[-1] if validated else {}).items()
        if isinstance(value, float) and name != "epoch"
    )
    found = _findings(run)
    body = (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(run.name)}</title>"
        "<style>body{font:15px system-ui;margin:2em auto;max-width:60em;color:#222}figure{display:inline-block;margin:.5em}"
        "td{padding:.1em 1em .1em 0}pre{background:#f5f5f5;padding:1em;overflow:auto}</style>"
        f"<h1>{html.escape(run.name)}</h1>{found}{''.join(charts)}<h2>Last evaluation</h2><table>{table}</table>"
        f"<h2>Config</h2><pre>{html.escape((run / 'config.yaml').read_text('utf-8'))}</pre>"
    )
    with replacing(run / "report.html") as temporary:
        temporary.write_text(body, "utf-8")


def _findings(run: Path) -> str:
    """Show what was measured after the run: what training gained, and the comparison with its controls."""
    sentences, rows = [], ""
    if (gain := run / "gain.json").is_file():
        sentences.append(json.loads(gain.read_text("utf-8"))["sentence"])
    if (controls := run / "controls" / "comparison.json").is_file():
        compared = json.loads(controls.read_text("utf-8"))
        sentences += [row["verdict"] for row in compared["runs"] if "verdict" in row]
        metric = compared["metric"]
        rows = "".join(
            f"<tr><td>{html.escape(clean(Path(row['run']).name))}</td><td>{row['metrics'][metric]:.4f}</td></tr>"
            for row in compared["runs"]
        )
        rows = f"<table><tr><td></td><td>{html.escape(clean(compared['split']))} {html.escape(clean(metric))}</td></tr>{rows}</table>"
    return "".join(f"<p>{html.escape(clean(sentence))}</p>" for sentence in sentences) + rows


def _chart(
    title: str, lines: Sequence[Mapping[str, Any]], name: str, width: int = 420, height: int = 220, across: str = "step"
) -> str:
    """Draw the values of `name` as an SVG curve; "" if no line has one.

    width, height: pixels.
    across: label of the x axis.
    """
    points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
    if not points:
        return ""
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = min(y for _, y in points), max(y for _, y in points)
    left, top, right, bottom = 60, 28, width - 12, height - 30

    def place(x: float, y: float) -> str:
        px = left + (right - left) * (x - x0) / ((x1 - x0) or 1)
        return f"{px:.1f},{bottom - (bottom - top) * (y - y0) / ((y1 - y0) or 1):.1f}"

    path = " ".join(place(x, y) for x, y in points)
    dots = (
        "".join(f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2" fill="#1f77b4"/>' for p in path.split())
        if len(points) < 60
        else ""
    )
    return (
        f'<figure><svg width="{width}" height="{height}" font-family="system-ui" font-size="12">'
        f'<text x="{left}" y="16" font-weight="bold">{html.escape(title)}</text>'
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#999"/>'
        f'<text x="{left - 6}" y="{top + 8}" text-anchor="end">{y1:.3g}</text><text x="{left - 6}" y="{bottom}" text-anchor="end">{y0:.3g}</text>'
        f'<text x="{left}" y="{height - 10}">{across} {x0:g}</text><text x="{right}" y="{height - 10}" text-anchor="end">{x1:g}</text>'
        f'<polyline points="{path}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>{dots}</svg></figure>'
    )
