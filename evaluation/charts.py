"""Pictures of a report as inline SVG, 360 units wide: letters of 11 units are legible on a phone, and grow on a screen.

Colours are the page's own variables, so that pictures follow it into the dark.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from evaluation.calibration import Bin
from evaluation.metrics import Interval

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 22, 36
MOST_LETTERS = 54
"""Of a name on one line over the whole width."""
LETTER = 6.6
"""Width of a figure in a letter size of 11."""
MOST_CELLS = 12
"""Labels up to which a confusion matrix has room for its numbers on a phone; a larger one is scrolled."""


@dataclass(frozen=True)
class Line:
    """Points that are joined, or marked one by one; `colour` is one of the page's variables."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "training"
    dots: bool = False


@dataclass(frozen=True)
class Bar:
    """A figure from 0 to 1 with its interval."""

    name: str
    value: float
    interval: Interval
    colour: str = "training"


def lines(
    title: str,
    series: Sequence[Line],
    *,
    x_axis: str,
    y_axis: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> Any:
    """A plot of several series; ranges are those of the data where none is given."""
    x_low, x_high = x_range or _range([x for line in series for x in line.x])
    y_low, y_high = y_range or _range([y for line in series for y in line.y])
    y_ticks = {tick: _number(tick) for tick in _ticks(y_low, y_high)}
    left = max(LEFT, 6 + LETTER * max(map(len, y_ticks.values()), default=0))
    across, up = WIDTH - left - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return left + across * (x - x_low) / (x_high - x_low), TOP + up * (1 - (y - y_low) / (y_high - y_low))

    parts = []
    for tick, text in y_ticks.items():
        _, y = place(x_low, tick)
        parts.append(f'<line x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(_text(left - 5, y + 4, text, "end"))
    for tick in _ticks(x_low, x_high):
        x, _ = place(tick, y_low)
        parts.append(_text(x, HEIGHT - BOTTOM + 14, _number(tick), "middle"))
    parts.append(_text(left + across / 2, HEIGHT - 4, x_axis, "middle"))
    parts.append(_text(0, 10, y_axis, "start"))
    if diagonal:
        (x1, y1), (x2, y2) = place(0, 0), place(1, 1)
        parts.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="var(--lost)" stroke-dasharray="3 3"/>')
    for line in series:
        points = [place(x, y) for x, y in zip(line.x, line.y, strict=True)]
        if not line.dots and len(points) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(f'<path d="M{path}" fill="none" stroke="var(--{line.colour})" stroke-width="1.6"/>')
        for (x, y), at_x, at_y in zip(points, line.x, line.y, strict=True):
            if line.dots or len(points) == 1:
                tooltip = f"<title>{escape(line.name)}: {_number(at_x)}, {_number(at_y)}</title>"
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="var(--{line.colour})">{tooltip}</circle>'
                )
    return _svg(title, HEIGHT, parts, _key(list(dict.fromkeys((line.name, line.colour) for line in series))))


def bars(title: str, rows: Sequence[Bar]) -> Any:
    """Horizontal bars from 0 to 1 with their intervals, each under its name."""
    across, y = WIDTH - 56, 0
    parts = []
    for row in rows:
        low, high = (across * min(1.0, max(0.0, limit)) for limit in row.interval)
        *above, name = textwrap.wrap(row.name, MOST_LETTERS) or [""]
        for part in above:
            parts.append(_text(0, y + 11, part, "start"))
            y += 13
        parts.append(_text(0, y + 11, name, "start"))
        parts.append(f'<rect x="0" y="{y + 16}" width="{across}" height="11" fill="var(--wash)"/>')
        parts.append(
            f'<rect x="0" y="{y + 16}" width="{across * row.value:.1f}" height="11" fill="var(--{row.colour})"/>'
        )
        parts.append(
            f'<path d="M{low:.1f} {y + 21.5}H{high:.1f}M{low:.1f} {y + 18}v7M{high:.1f} {y + 18}v7" '
            'stroke="var(--ink)" stroke-width="1.3" fill="none"/>'
        )
        parts.append(_text(WIDTH, y + 25, f"{row.value:.3f}", "end"))
        y += 34
    return _svg(title, y, parts)


def reliability(title: str, bins: Sequence[Bin], ece: float) -> Any:
    """Accuracy against confidence in bins; what a calibrated model has lies on the diagonal."""
    line = Line(
        f"bins, ECE {ece:.3f}", [b.confidence for b in bins], [b.accuracy for b in bins], colour="test", dots=True
    )
    return lines(
        title, [line], x_axis="confidence", y_axis="accuracy", x_range=(0, 1), y_range=(0, 1), diagonal=True
    )  # fmt: skip


def heat(title: str, rows: Sequence[str], columns: Sequence[str], values: np.ndarray, *, signed: bool = False) -> Any:
    """Values (rows, columns) as shades of one colour, or of two where they are signed; the legend names the largest."""
    names = 12 + 6.2 * max(len(row) for row in rows)
    cell = max(9.0, (WIDTH - names) / max(1, len(columns)))
    tall, width = min(cell, 20.0), names + cell * len(columns)
    most = float(np.abs(values).max()) or 1.0
    every = -(-len(columns) * 22 // int(width - names))  # so many columns to a heading
    parts = []
    for j, column in enumerate(columns):
        if j % every == 0:
            parts.append(_text(names + cell * (j + 0.5), 12, column, "middle"))
    for i, row in enumerate(rows):
        y = 18 + tall * i
        parts.append(_text(0, y + tall / 2 + 4, row, "start"))
        for j, value in enumerate(values[i]):
            colour = "test" if value < 0 else "training"
            tooltip = f"<title>{escape(row)}, {escape(columns[j])}: {_number(value)}</title>"
            parts.append(
                f'<rect x="{names + cell * j:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" height="{tall - 1:.1f}" '
                f'fill="var(--{colour})" fill-opacity="{0.05 + 0.95 * abs(value) / most:.2f}">{tooltip}</rect>'
            )
    legend = [
        (f"darkest {_number(most)}", "training"),
        *([(f"less, down to −{_number(most)}", "test")] if signed else []),
    ]
    return _svg(title, 18 + tall * len(rows), parts, _key(legend), width=width, scrolls=width > WIDTH)


def confusion(title: str, labels: Sequence[str], counts: np.ndarray) -> Any:
    """Tickets by given label (rows) and predicted label (columns), (K, K); shades are shares of the row."""
    names, many = 140, len(labels) > MOST_CELLS
    cell = 15.0 if many else (WIDTH - names) / max(1, len(labels))
    width = names + cell * len(labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts = []
    for i, label in enumerate(labels):
        y = 18 + cell * i
        parts.append(_text(0, y + cell / 2 + 4, f"{i + 1} {_short(label, 20)}", "start"))
        parts.append(_text(names + cell * (i + 0.5), 12, str(i + 1), "middle"))
        for j, count in enumerate(counts[i]):
            x, share = names + cell * j, shares[i, j]
            colour = "training" if i == j else "test"
            tooltip = f"<title>{escape(label)} → {escape(labels[j])}: {count}</title>"
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}" fill="var(--{colour})" '
                f'fill-opacity="{0.06 + 0.94 * share:.2f}">{tooltip}</rect>'
            )
            if count and not many:
                ink = "#fff" if share > 0.55 else "var(--ink)"
                middle = f'x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}"'
                parts.append(f'<text {middle} text-anchor="middle" style="fill: {ink}">{count}</text>')
    return _svg(title, 18 + cell * len(labels), parts, width=width, scrolls=many)


def _svg(
    title: str, height: float, parts: list[str], key: str = "", width: float = WIDTH, scrolls: bool = False
) -> Any:
    from markupsafe import Markup

    least = f' style="min-width: {width:.0f}px"' if scrolls else ""
    picture = (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}"{least}>'
        f"{''.join(parts)}</svg>"
    )
    return Markup(f'<figure><figcaption>{escape(title)}</figcaption><div class="wide">{picture}</div>{key}</figure>')


def _key(names: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<span><i class="{colour}"></i>{escape(name)}</span>' for name, colour in names)
    return f'<div class="key">{items}</div>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _number(value: float) -> str:
    if 0 < abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two limits, about five."""
    raw = (high - low) / 4
    power = 10 ** np.floor(np.log10(raw))
    step = float(next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999))
    first = int(np.ceil(low / step - 1e-9))
    return [step * i for i in range(first, int(np.floor(high / step + 1e-9)) + 1)]
