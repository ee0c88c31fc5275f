"""`gpumodctl simulate`: would these services fit, and what would a switch to them do?"""

from collections.abc import Iterable

import click

from gpumodctl import completion, exits
from gpumodctl.client import decode
from gpumodctl.invocation import Invocation
from gpumodctl.options import command
from gpumodctl.results import show_simulation
from gpumodd.wire.types import Simulation


@command("simulate", help="Show whether MODE fits and what a switch would do.")
@click.argument("mode", required=False, shell_complete=completion.modes)
@click.option("--services", metavar="A,B,…", help="These services instead of a mode.")
@click.option(
    "--add", multiple=True, metavar="SERVICE", shell_complete=completion.services, help="With this service, too."
)
@click.option(
    "--remove", multiple=True, metavar="SERVICE", shell_complete=completion.services, help="Without this service."
)
@click.option("--context", multiple=True, metavar="SERVICE=N", help="With this context for this service.")
@click.pass_obj
def simulate(
    invocation: Invocation,
    mode: str | None,
    services: str | None,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    context: tuple[str, ...],
) -> int:
    raw = invocation.ask("mode.simulate", params(mode, services, add, remove, context))
    return show(invocation, decode(raw, Simulation), raw)


def show(invocation: Invocation, simulation: Simulation, document: object) -> int:
    """A simulation in words, or the document that it came as; the exit code says whether it fits."""
    if invocation.json:
        invocation.document(document)
    else:
        show_simulation(invocation, simulation)
    return exits.OK if simulation.fits else exits.REFUSED


def params(
    mode: str | None, services: str | None, add: Iterable[str], remove: Iterable[str], context: Iterable[str]
) -> dict[str, object]:
    """The parameters of mode.simulate that these words mean."""
    if (mode is None) == (services is None):
        raise click.UsageError("give either a MODE or --services A,B,…")
    named = [word for word in (services or "").split(",") if word]
    asked: dict[str, object] = {"id": mode} if mode is not None else {"services": named}
    asked |= {"add": list(add), "remove": list(remove)}
    if contexts := dict(map(_context, context)):
        asked["context"] = contexts
    return asked


def _context(word: str) -> tuple[str, int]:
    service, _, number = word.rpartition("=")
    if not service or not (number.isascii() and number.isdigit() and 0 < int(number[:10]) <= 1 << 31):
        raise click.UsageError(f"cannot use --context {word!r}: it is not SERVICE=N with N tokens")
    return service, int(number)
