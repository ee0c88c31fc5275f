"""`gpumodctl simulate`: would this mode fit, and what would a switch do?"""

import click

from gpumodctl import completion, exits
from gpumodctl.client import decode
from gpumodctl.invocation import Invocation
from gpumodctl.options import command
from gpumodctl.results import show_simulation
from gpumodd.wire.types import Simulation


@command("simulate", help="Show whether MODE fits and what a switch to it would do. Touches nothing.")
@click.argument("mode", shell_complete=completion.modes)
@click.option(
    "--add", multiple=True, metavar="SERVICE", shell_complete=completion.services, help="With this service, too."
)
@click.option(
    "--remove", multiple=True, metavar="SERVICE", shell_complete=completion.services, help="Without this service."
)
@click.pass_obj
def simulate(invocation: Invocation, mode: str, add: tuple[str, ...], remove: tuple[str, ...]) -> int:
    raw = invocation.ask("mode.simulate", {"id": mode, "add": add, "remove": remove})
    simulation = decode(raw, Simulation)
    if invocation.json:
        invocation.document(raw)
    else:
        show_simulation(invocation, simulation)
    return exits.OK if simulation.fits else exits.REFUSED
