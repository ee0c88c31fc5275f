"""The table of errors in `docs/estimates.md`: every measured model, and how far off its estimates are.

python -m tests.support.estimate_table     writes it into the document
"""

from pathlib import Path
from statistics import median

from gpumodd.estimate import flags
from gpumodd.estimate.llamacpp import MIB, breakdown
from tests.support.published_models import Model, header, load

DOCUMENT = Path(__file__).parents[2] / "docs" / "estimates.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def table() -> str:
    """One line for each model, by architecture."""
    models = sorted(load().values(), key=lambda model: (model.architecture, model.name))
    lines = ["| architecture | model | runs | context, worst | compute, median | compute, worst |"]
    lines.append("|---|---|---|---|---|---|")
    return "\n".join([*lines, *map(_line, models)]) + "\n"


def _line(model: Model) -> str:
    contexts, computes = [], []
    found = header(model)
    for run in model.runs:
        estimate = breakdown(found, flags.run(run.args, {}))
        contexts.append(_off(estimate.cache, run.context))
        computes.append(_off(estimate.compute, run.compute))
    figures = f"{max(contexts):.1%} | {median(computes):.1%} | {max(computes):.1%}"
    return f"| {model.architecture} | {model.name} | {len(model.runs)} | {figures} |"


def _off(found: int, measured: float) -> float:
    """In parts of what was measured, beyond its two decimals."""
    return max(0.0, abs(found / MIB - measured) - 0.02) / max(measured, 0.02)


def replaced(document: str) -> str:
    """The document with today's table."""
    before, _, rest = document.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    DOCUMENT.write_text(replaced(DOCUMENT.read_text()))
