"""The report: figures as a table on the terminal, as `report.md` with its plots, and as JSON for programs."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.figures import Figure

HEADS = ("figure", "median", "min to max", "goal", "")
VERDICTS = {True: "met", False: "MISSED", None: ""}

INTRO = """\
# Benchmarks

Written by `make bench`. Every figure is the median of repetitions, interleaved with its baseline where it has one,
so that whatever else the machine was doing hits both. Figures of two runs are not comparable, their ratios are.

"""


def cells(figure: Figure) -> tuple[str, str, str, str, str]:
    """One figure as the columns of a table."""

    def said(value: float) -> str:
        return f"{value:.{figure.digits}f}"

    spread, unit = figure.spread, f" {figure.unit}" if figure.unit else ""
    goal = "" if figure.goal is None else f"{'≥' if figure.at_least else '≤'} {figure.goal:g}{unit}"
    ends = f"{said(spread.low)} to {said(spread.high)}, n={spread.count}" if spread.count > 1 else "n=1"
    return figure.name, said(spread.median) + unit, ends, goal, VERDICTS[figure.met]


def table(figures: Sequence[Figure]) -> str:
    """The figures in columns."""
    rows = [HEADS, *map(cells, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write(folder: Path, figures: Sequence[Figure], plots: Mapping[str, str], *, quick: bool) -> None:
    """`report.md` and the plots (SVG by file stem) in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, svg in plots.items():
        (folder / f"{stem}.svg").write_text(svg)
    (folder / "report.md").write_text(_markdown(figures, list(plots), quick=quick))


def document(figures: Sequence[Figure], *, quick: bool) -> str:
    """The figures as JSON."""
    found = [asdict(figure) | {"met": figure.met} for figure in figures]
    return json.dumps({"quick": quick, "figures": found}, indent=1) + "\n"


def machine() -> str:
    """The machine and how busy it was, in one line."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    python = platform.python_version()
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {python}, load average {load}"


def _markdown(figures: Sequence[Figure], plots: Sequence[str], *, quick: bool) -> str:
    lines = [INTRO + f"Measured on: {machine()}."]
    if quick:
        lines.append("\n**A quick run**: too few and too short repetitions to say anything about speed.")
    for benchmark in dict.fromkeys(figure.benchmark for figure in figures):
        lines += [f"\n## {benchmark}\n", "| " + " | ".join((*HEADS[:-1], "kept")) + " |", "|---|---|---|---|---|"]
        mine = [figure for figure in figures if figure.benchmark == benchmark]
        lines += ["| " + " | ".join(cells(figure)) + " |" for figure in mine]
        lines += ["", *dict.fromkeys(f"- *{figure.name}*: {figure.how}" for figure in mine)]
        lines += [f"\n![{stem}]({stem}.svg)" for stem in plots if stem.startswith(benchmark)]
    return "\n".join(lines) + "\n"
