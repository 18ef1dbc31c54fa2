"""Write report.html: one page, without a network, that says how good a run's result is, where it fails, and what it was made from."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmeco.checkpoints.format import open_checkpoint
from fmeco.checkpoints.pointers import marked
from fmeco.core.page import Cases, Cell, Curves, Matrix, Part, Point, Table
from fmeco.errors import CheckpointError
from fmeco.files import replacing
from fmeco.reports import findings, svg
from fmeco.reports.metrics_files import read_metrics
from fmeco.reports.svg import text

STYLE = (Path(__file__).parent / "report.css").read_text("utf-8")
DRAWN = 500  # points of a curve
OPEN = 30  # rows of a table that are shown at once


def report(run: Path) -> None:
    """Write RUN/report.html from the run's files: it computes nothing anew, and loads nothing else. Raises DiskError."""
    logged, meta = read_metrics(run), _best(run)
    found = findings.read(run, meta.get("step"))
    sections = [
        _section("Result", _cards(found, meta) + _gained(run) + (_metrics(found) if found else _last(meta, logged))),
        _section("Training", _training(logged, meta)),
        *(_section(_title(one), _parts(one)) for one in found if one["parts"]),
        _section("Data", _data(run, meta)),
        _section("Origin", _origin(meta)),
        _section("Again", _again(run, logged, meta)),
    ]
    name = text(run.name)
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style><main><header><h1>{name}</h1>{_what(meta)}</header>"
        f"{''.join(sections)}</main></html>\n"
    )
    with replacing(run / "report.html") as temporary:
        temporary.write_text(page, "utf-8")


def _best(run: Path) -> dict[str, Any]:
    """Return the meta.json of the best checkpoint; {} without one."""
    best = marked(run / "checkpoints", "best")
    try:
        return dict(open_checkpoint(best).meta) if best is not None else {}
    except CheckpointError:
        return {}


def _section(title: str, body: str) -> str:
    return f"<section><h2>{text(title)}</h2>{body}</section>" if body else ""


def _paragraph(words: str, kind: str = "") -> str:
    return f"<p{f' class={kind}' if kind else ''}>{text(words)}</p>" if words else ""


def _what(meta: Mapping[str, Any]) -> str:
    """Say in one line what the run trained."""
    if not meta:
        return ""
    config = meta["config"]
    backbone = config.get("backbone", {}).get("name", "a backbone given in Python")
    data = config.get("dataset", {}).get("name", "data given in Python")
    return _paragraph(f"{backbone}, {config['objective']['name']}, {data}: {meta['parameters']:,} parameters", "lead")


# --- result ---


def _selecting(meta: Mapping[str, Any]) -> str:
    """Return the metric that selected the best checkpoint; "" if it is not known."""
    evaluating = (meta.get("config") or {}).get("evaluate") or {}
    return str(evaluating.get("best") or "").removeprefix("val_")


def _cards(found: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> str:
    """Show the objective's metric on each split, large, with its interval: the one that selected the checkpoint, if that is its own."""
    cards = []
    for one in found:
        if (name := one["metric"]) is None or one["metrics"][name] is None:
            continue
        span = one["interval"]
        between = f"95% interval {span[0]:.4f} to {span[1]:.4f}, " if span else ""
        chosen = ", which chose the checkpoint" if one["split"] == "val" and name == _selecting(meta) else ""
        note = f"{between}{one['samples']:,} {one['split']} samples{chosen}"
        cards.append(
            f'<div class="card"><b>{one["metrics"][name]:.4f}</b> <span>{text(one["split"])} {text(name)}</span>'
            f"<small>{text(note)}</small></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _metrics(found: Sequence[Mapping[str, Any]]) -> str:
    """List all metrics but those of single classes, a column per split."""
    names = dict.fromkeys(name for one in found for name in one["metrics"] if "/" not in name)
    rows = []
    for name in names:
        way = next((one["directions"].get(name) for one in found), None)
        words = {"max": "higher is better", "min": "lower is better"}.get(str(way), "")
        rows.append((name, *(one["metrics"].get(name) for one in found), words))
    return _table(Table("Metrics", ("metric", *(one["split"] for one in found), ""), tuple(rows)), digits=4)


def _last(meta: Mapping[str, Any], logged: Sequence[Mapping[str, Any]]) -> str:
    """List the metrics of the best checkpoint, or else of the last evaluation."""
    values: Mapping[str, Any] = meta.get("metrics") or next(
        (line for line in reversed(logged) if line["kind"] == "val"), {}
    )
    rows = [
        (name, value)
        for name, value in values.items()
        if isinstance(value, float) and "/" not in name and name != "epoch"
    ]
    return _table(Table("Metrics", ("metric", "value"), tuple(rows)), digits=4) if rows else ""


def _gained(run: Path) -> str:
    """Show what was measured after the run: what training gained, and the comparison with its controls."""
    body = ""
    if (gain := run / "gain.json").is_file():
        body += _paragraph(json.loads(gain.read_text("utf-8"))["sentence"])
    if (controls := run / "controls" / "comparison.json").is_file():
        compared = json.loads(controls.read_text("utf-8"))
        metric = compared["metric"]
        rows = tuple(
            (row.get("name") or Path(row["run"]).name, row["metrics"][metric], row.get("verdict", ""))
            for row in compared["runs"]
        )
        body += _table(Table("Controls", ("run", f"{compared['split']} {metric}", ""), rows), digits=4)
    return body


# --- training ---


def _training(logged: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> str:
    """Draw the loss of training and validation in one plot, the selecting metric in another, and the rest behind a click."""
    trained, validated = ([line for line in logged if line["kind"] == kind] for kind in ("train", "val"))
    best = meta.get("step")
    losses = {"training": _points(trained, "loss"), "validation": _points(validated, "loss", best)}
    plots = [_curve("Loss", "loss", {name: points for name, points in losses.items() if points}, best)]
    names = [
        name
        for name in (validated[-1] if validated else {})
        if name not in ("kind", "step", "epoch", "loss") and "/" not in name
    ]
    names.sort(key=lambda name: name != _selecting(meta))  # the selecting metric first
    plots += [_curve(name, name, {"validation": _points(validated, name, best)}, best) for name in names[:1]]
    rest = [_curve(name, name, {"validation": _points(validated, name)}, best) for name in names[1:]]
    rest += [_curve("Learning rate", "learning rate", {"": _points(trained, "lr")}, None)]
    tried = [{**line, "step": math.log10(line["lr"])} for line in logged if line["kind"] == "range" and line.get("lr")]
    rest += [_curve("Range test", "loss", {"": _points(tried, "loss")}, None, across="log10 of the learning rate")]
    shown, hidden = (f'<div class="plots">{"".join(each)}</div>' for each in (plots, rest))
    return shown + (f"<details><summary>More curves</summary>{hidden}</details>" if any(rest) else "")


def _points(lines: Sequence[Mapping[str, Any]], name: str, best: int | None = None) -> tuple[Point, ...]:
    """Return the values of a metric by step, thinned out evenly to what a plot can show, but with that of the step `best`."""
    points = [(float(line["step"]), float(line[name])) for line in lines if isinstance(line.get(name), int | float)]
    every = -(-len(points) // DRAWN) or 1
    return tuple(point for at, point in enumerate(points) if at % every == 0 or point[0] == best)


def _curve(title: str, up: str, lines: Mapping[str, tuple[Point, ...]], best: int | None, across: str = "step") -> str:
    """Draw lines over the steps, and mark the best checkpoint on that of validation."""
    marks = [((x, y), f"best, {y:.4g}") for x, y in lines.get("validation", ()) if x == best]
    drawn = svg.curves(Curves(title, across, up, lines), marks)
    return f"<figure><figcaption>{text(title)}</figcaption>{drawn}</figure>" if drawn else ""


# --- what an evaluation found ---


def _title(found: Mapping[str, Any]) -> str:
    names = {"test": "Test", "val": "Validation"}
    return f"{names.get(found['split'], found['split'])}: where it is right, and where not"


def _parts(found: Mapping[str, Any]) -> str:
    return "".join(_part(part, found["samples_shown"]) for part in found["parts"])


def _part(part: Part, shown: Mapping[str, Mapping[str, str]]) -> str:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Cases):
        return _cases(part, shown)
    drawn = svg.matrix(part) if isinstance(part, Matrix) else svg.curves(part)
    return f"<h3>{text(part.title)}</h3>{drawn}{_paragraph(part.note, 'note')}" if drawn else ""


def _cases(part: Cases, shown: Mapping[str, Mapping[str, str]]) -> str:
    """Show single samples side by side."""
    cells = []
    for at, caption in zip(part.at, part.captions, strict=True):
        one = shown.get(str(at), {"name": ""})
        picture = f'<img src="{html.escape(one["picture"])}" alt="">' if "picture" in one else ""
        words = f"<blockquote>{text(one['words'])}</blockquote>" if "words" in one else ""
        cells.append(
            f"<figure>{picture}{words}<figcaption>{text(caption)}<small>{text(one['name'])}</small></figcaption></figure>"
        )
    return f'<h3>{text(part.title)}</h3>{_paragraph(part.note, "note")}<div class="cases">{"".join(cells)}</div>'


def _table(part: Table, digits: int = 3) -> str:
    """Write a table; the rows beyond the first ones behind a click."""

    def cell(value: Cell) -> str:
        if value is None:
            return "<td></td>"
        if isinstance(value, float):
            return f"<td class=n>{value:.{digits}f}</td>"
        return f"<td class=n>{value:,}</td>" if isinstance(value, int) else f"<td>{text(value)}</td>"

    numbers = [any(isinstance(row[at], int | float) for row in part.rows) for at in range(len(part.columns))]
    head = "".join(
        f"<th{' class=n' if right else ''}>{text(name)}</th>" for name, right in zip(part.columns, numbers, strict=True)
    )
    lines = [f"<tr>{''.join(map(cell, row))}</tr>" for row in part.rows]
    title = f"<h3>{text(part.title)}</h3>" if part.title else ""
    body = f'<div class="wide"><table><tr>{head}</tr>{"".join(lines[:OPEN])}</table></div>'
    if more := lines[OPEN:]:
        rest = f'<div class="wide"><table><tr>{head}</tr>{"".join(more)}</table></div>'
        body += f"<details><summary>{len(more):,} more</summary>{rest}</details>"
    return title + body + _paragraph(part.note, "note")


# --- data, origin, and how to repeat it ---


def _data(run: Path, meta: Mapping[str, Any]) -> str:
    """Show the sizes of the splits, the classes, and training samples as the model saw them."""
    if not meta:
        return ""
    spec = meta["spec"]
    body = _paragraph(", ".join(f"{count:,} {part}" for part, count in spec["sizes"].items()) + " samples")
    for name, target in spec["targets"].items():
        if target.get("classes") and len(target["classes"]) == len(target.get("counts", ())):
            rows = tuple(zip(map(str, target["classes"]), map(int, target["counts"]), strict=True))
            body += _table(Table(f"Classes of {name} in training", ("class", "samples"), rows))
    if (picture := run / findings.FOLDER / "training.uri").is_file():
        uri = picture.read_text("utf-8")
        body += f'<h3>Training samples, augmented</h3><img class="sheet" src="{html.escape(uri)}" alt="augmented training samples">'
    return body


def _origin(meta: Mapping[str, Any]) -> str:
    """Say what was loaded from where."""
    loaded = meta.get("transplant")
    if not loaded:
        return ""
    across = f", across modalities ({loaded['crossing']})" if loaded.get("crossing") else ""
    return _paragraph(
        f"Started from {loaded['source']}: {loaded['share']:.1%} of the backbone's parameters were loaded{across}."
    )


def _again(run: Path, logged: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> str:
    """Say how to repeat the run, what its time was spent on, and with which versions."""
    config = (run / "config.yaml").read_text("utf-8")
    stage = meta["config"].get("stage", "pretrain") if meta else "pretrain"
    body = f"<pre>fmeco {text(stage)} {text(run / 'config.yaml')}</pre>"
    if timed := next((line for line in reversed(logged) if line["kind"] == "time"), None):
        shares = [
            f"{name.removesuffix('_share')} {value:.0%}" for name, value in timed.items() if name.endswith("_share")
        ]
        body += _paragraph(
            f"{timed['samples_per_second']:,.0f} samples per second in training; time: {', '.join(shares)}"
        )
    if meta:
        body += _paragraph("With " + ", ".join(f"{name} {value}" for name, value in meta["versions"].items()))
    return body + f"<details><summary>config.yaml</summary><pre>{_block(config)}</pre></details>"


def _block(value: str) -> str:
    """Escape a text of several lines."""
    return "\n".join(text(line) if line else "" for line in value.splitlines())
