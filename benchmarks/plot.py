"""A timeline as SVG, written by hand: what happened in bars, and below each row in grey what could have."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = {"stop": "#c0504d", "release": "#e0a030", "start": "#4f81bd", "ideal": "#bbbbbb"}
LABELS = {"stop": "stop", "release": "memory comes back", "start": "start and load", "ideal": "critical path"}
LEFT, TOP, ROW, WIDTH = 140, 64, 34, 860


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
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 30}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{bottom + 30}" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
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
