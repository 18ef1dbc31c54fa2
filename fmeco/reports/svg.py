"""Draw the parts of a report as inline SVG, which takes its colours from the page's style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from fmeco.core.page import Curves, Matrix, Point
from fmeco.errors import clean

WIDTH, HEIGHT = 560, 300  # of a plot, in its own units; a page scales it down where it is narrower
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 42  # margins of a plot
TICKS = 5
NUMBERED = 12  # classes up to which a confusion matrix shows its numbers
LINES = 6  # colours of the style sheet


def text(value: object) -> str:
    """Escape text for HTML, and characters that a terminal or a page must not obey."""
    return html.escape(clean(value))


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Choose round numbers from low to high, about `count` of them: 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [at * step for at in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Write a number of an axis shortly: 0.25, 1,500, 2e+06."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.1e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.0f}"


class Axes:
    """Place points on a plot, and draw its axes with ticks."""

    def __init__(self, points: Iterable[Point], across: str, up: str, *, zero: bool = False) -> None:
        """Choose the ranges. zero: the vertical one begins at 0."""
        xs, ys = zip(*points, strict=True)
        self.across, self.up = across, up
        self.x0, self.x1 = _range(xs)
        self.y0, self.y1 = _range([0.0, *ys] if zero and min(ys) > 0 else ys, room=0.04)

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x0) / (self.x1 - self.x0)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y0) / (self.y1 - self.y0)

    def draw(self) -> str:
        """Draw the axes, horizontal grid lines and the words beside them."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for value in ticks(self.y0, self.y1):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
        for value in ticks(self.x0, self.x1, 6):
            x = self.x(value)
            parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{number(value)}</text>')
        middle = (TOP + bottom) / 2
        parts += [
            f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>',
            f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{text(self.across)}</text>',
            f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{text(self.up)}</text>',
        ]
        return "".join(parts)


def _range(values: Sequence[float], room: float = 0.0) -> tuple[float, float]:
    """Return the smallest and largest value, apart even if all are equal. room: share of their distance to add at both ends."""
    low, high = min(values), max(values)
    if low == high:
        half = abs(low) / 10 or 0.5
        return low - half, high + half
    more = room * (high - low)
    return low - more, high + more


def curves(part: Curves, marks: Sequence[tuple[Point, str]] = ()) -> str:
    """Draw lines or points. marks: points to ring, each with a word beside it. "" without points."""
    lines = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in part.lines.items()}
    every = [point for points in lines.values() for point in points]
    if not every:
        return ""
    both = [v for point in every for v in point]
    spread = [(min(both), min(both)), (max(both), max(both))] if part.diagonal else []
    axes = Axes([*every, *spread], part.across, part.up)
    drawn = [axes.draw()]
    if part.diagonal:
        (low, _), (high, _) = spread
        drawn.append(
            f'<path class="diagonal" d="M{axes.x(low):.1f} {axes.y(low):.1f}L{axes.x(high):.1f} {axes.y(high):.1f}"/>'
        )
    for at, points in enumerate(lines.values()):
        placed = [(axes.x(x), axes.y(y)) for x, y in points]
        if part.connected:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            drawn.append(f'<polyline class="line c{at % LINES}" points="{path}"/>')
        if not part.connected or len(placed) <= 40:
            dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in placed)
            drawn.append(f'<g class="dots c{at % LINES}">{dots}</g>')
    for (x, y), word in marks:
        px, py = axes.x(x), axes.y(y)
        anchor, shift = ("end", -8) if px > WIDTH * 0.7 else ("start", 8)
        drawn.append(f'<circle class="mark" cx="{px:.1f}" cy="{py:.1f}" r="5"/>')
        drawn.append(
            f'<text class="word" x="{px + shift:.1f}" y="{max(TOP + 10, py - 8):.1f}" text-anchor="{anchor}">{text(word)}</text>'
        )
    names = [name for name in part.lines if name]
    key = "".join(f'<span class="key c{at % LINES}">{text(name)}</span>' for at, name in enumerate(part.lines) if name)
    svg = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(part.title)}">{"".join(drawn)}</svg>'
    return svg + (f'<p class="keys">{key}</p>' if names else "")


def matrix(part: Matrix) -> str:
    """Draw a confusion matrix. Its cells are as dark as their share of the row; pointing at one shows its numbers."""
    size, names = len(part.names), [clean(name) for name in part.names]
    longest = min(18, max(map(len, names)))
    cell = 44 if size <= NUMBERED else max(7, 560 // size)
    font = min(12, max(6, cell - 1))
    label = longest * font * 0.6 + 10
    side = size * cell
    parts = []
    for i, row in enumerate(part.counts):
        total = sum(row)
        shown = html.escape(_short(names[i], longest))
        parts.append(
            f'<text x="{label - 5:.0f}" y="{(i + 0.5) * cell + font * 0.36:.1f}" text-anchor="end" font-size="{font}">{shown}</text>'
            f'<text transform="translate({label + (i + 0.5) * cell + font * 0.36:.1f} {side + 6}) rotate(-90)" text-anchor="end" '
            f'font-size="{font}">{shown}</text>'
        )
        for j, count in enumerate(row):
            if not count:
                continue
            share = count / total
            kind = "right" if i == j else "wrong"
            told = html.escape(f"{names[i]}, answered {names[j]}: {count:,} of {total:,} ({share:.0%})")
            parts.append(
                f'<rect class="{kind}" x="{label + j * cell:.1f}" y="{i * cell}" width="{cell}" height="{cell}" '
                f'fill-opacity="{0.12 + 0.88 * share:.2f}"><title>{told}</title></rect>'
            )
            if size <= NUMBERED:
                strong = " strong" if share > 0.55 else ""
                parts.append(
                    f'<text class="count{strong}" x="{label + (j + 0.5) * cell:.1f}" y="{(i + 0.5) * cell + 4}" '
                    f'text-anchor="middle">{count:,}</text>'
                )
    parts.append(f'<rect class="frame" x="{label:.1f}" y="0" width="{side}" height="{side}"/>')
    width, height = label + side + 2, side + label + 2
    return (
        f'<svg class="matrix" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="{text(part.title)}">{"".join(parts)}</svg><p class="note">Rows are true classes, columns answers.</p>'
    )


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "\u2026"
