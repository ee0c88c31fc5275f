"""Pictures as SVG, written by hand: timelines (what happened in bars, and below each row in grey what could have), and
lines over sizes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = {"stop": "#c0504d", "release": "#e0a030", "start": "#4f81bd", "ideal": "#bbbbbb"}
LABELS = {"stop": "stop", "release": "memory comes back", "start": "start and load", "ideal": "critical path"}
LEFT, TOP, ROW, WIDTH = 140, 64, 34, 860
HEIGHT = 320  # of a picture of lines, between the axes
HUES = ("#4f81bd", "#c0504d", "#9bbb59", "#8064a2", "#e0a030", "#4bacc6")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One stretch of time, in seconds, in the row of a service."""

    row: str
    kind: str
    begin: float
    end: float


def timeline(title: str, bars: Sequence[Bar]) -> str:
    """The picture."""
    rows = list(dict.fromkeys(bar.row for bar in bars))
    last = max(bar.end for bar in bars)
    scale = (WIDTH - LEFT - 20) / last
    bottom = TOP + ROW * len(rows)
    parts = _canvas(title, bottom + 30)
    for number, (kind, label) in enumerate(LABELS.items()):
        left = LEFT + 150 * number
        parts += [
            f'<rect x="{left}" y="34" width="12" height="12" fill="{COLOURS[kind]}"/>',
            f'<text x="{left + 18}" y="45">{label}</text>',
        ]
    for tick in range(int(last / 0.5) + 1):
        x = LEFT + tick * 0.5 * scale
        parts += [
            f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#dddddd"/>',
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick * 0.5:g} s</text>',
        ]
    for number, row in enumerate(rows):
        parts.append(f'<text x="{LEFT - 8}" y="{TOP + ROW * number + 17}" text-anchor="end">{escape(row)}</text>')
    for bar in bars:
        y = TOP + ROW * rows.index(bar.row) + (20 if bar.kind == "ideal" else 4)
        parts.append(
            f'<rect x="{LEFT + bar.begin * scale:.1f}" y="{y}" width="{max(1.0, (bar.end - bar.begin) * scale):.1f}"'
            f' height="{6 if bar.kind == "ideal" else 14}" fill="{COLOURS[bar.kind]}"/>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: values over sizes. An ideal is drawn grey and dashed."""

    name: str
    points: Sequence[tuple[float, float]]
    ideal: bool = False


def lines(title: str, shown: Sequence[Line], *, log: bool = False) -> str:
    """The picture: sizes stand side by side, values on a linear or a logarithmic scale."""
    sizes = sorted({x for line in shown for x, _ in line.points})
    values = [y for line in shown for _, y in line.points]
    scale = math.log10 if log else float
    low, high = scale(min(values)), scale(max(values))
    low, high = (math.floor(low), math.ceil(high)) if log else (low - 0.05 * (high - low), high)
    bottom, right = TOP + HEIGHT, WIDTH - 240

    def x_of(size: float) -> float:
        return LEFT / 2 + 30 + sizes.index(size) * (right - LEFT / 2 - 60) / max(1, len(sizes) - 1)

    def y_of(value: float) -> float:
        return bottom - (scale(value) - low) / ((high - low) or 1) * HEIGHT

    parts = _canvas(title, bottom + 40)
    marks = [10.0**e for e in range(int(low), int(high) + 1)] if log else _round_values(low, high)
    for mark in marks:
        parts += [
            f'<line x1="{LEFT / 2}" y1="{y_of(mark):.1f}" x2="{right}" y2="{y_of(mark):.1f}" stroke="#dddddd"/>',
            f'<text x="{LEFT / 2 - 6}" y="{y_of(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>',
        ]
    for size in sizes:
        parts.append(f'<text x="{x_of(size):.1f}" y="{bottom + 20}" text-anchor="middle">{size:g}</text>')
    for number, line in enumerate(shown):
        colour = COLOURS["ideal"] if line.ideal else HUES[number % len(HUES)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        dashes = ' stroke-dasharray="6 4"' if line.ideal else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        parts += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colour}"/>' for x, y in line.points]
        y = TOP + 12 + 20 * number
        parts += [
            f'<rect x="{right + 20}" y="{y - 10}" width="12" height="12" fill="{colour}"/>',
            f'<text x="{right + 38}" y="{y}">{escape(line.name)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _round_values(low: float, high: float) -> list[float]:
    """About six round values between these."""
    step = 10 ** math.floor(math.log10((high - low) or 1))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if (high - low) / s <= 8)
    return [round(i * step, 6) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _canvas(title: str, height: float) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
