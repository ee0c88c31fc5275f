"""`gpumodctl completion`: the script that makes a shell complete commands, options and ids."""

import click
from click.shell_completion import get_completion_class

from gpumodctl.invocation import Invocation
from gpumodctl.options import command


@command(
    "completion",
    help='Print the completion script for a shell.\n\nFor bash: eval "$(gpumodctl completion bash)"',
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    invocation: Invocation = ctx.obj
    found = get_completion_class(shell)
    assert found is not None
    script = found(ctx.find_root().command, {}, "gpumodctl", "_GPUMODCTL_COMPLETE")
    text = script.source_template % script.source_vars()
    if invocation.json:
        invocation.document(text)
    else:
        invocation.say(text)
