"""The command table: what is being asked of one unit, and what may be asked next.

The table is the truth: a pair that is not listed is a bug and raises with both names. A start that is no longer
wanted cannot be un-asked; it becomes STOPPING_START and then STARTING_UNWANTED until its job has ended.
"""

from collections.abc import Mapping
from enum import StrEnum


class Command(StrEnum):
    """What is in flight for a unit."""

    IDLE = "idle"
    STARTING = "starting"
    STOPPING = "stopping"
    STOPPING_START = "stopping_start"  # a stop was asked while the start's job was still running
    STARTING_UNWANTED = "starting_unwanted"  # that stop has ended, the start's job has not

    @property
    def coming(self) -> bool:
        """A start's job is in flight and wanted."""
        return self is Command.STARTING

    @property
    def leaving(self) -> bool:
        """A stop's job is in flight."""
        return self in (Command.STOPPING, Command.STOPPING_START)


class Asked(StrEnum):
    """What happens to a command."""

    START = "start"
    STOP = "stop"
    START_ENDED = "start_ended"
    STOP_ENDED = "stop_ended"


TABLE: Mapping[tuple[Command, Asked], Command] = {
    (Command.IDLE, Asked.START): Command.STARTING,
    (Command.IDLE, Asked.STOP): Command.STOPPING,
    (Command.STARTING, Asked.START_ENDED): Command.IDLE,
    (Command.STARTING, Asked.STOP): Command.STOPPING_START,
    (Command.STOPPING, Asked.STOP_ENDED): Command.IDLE,
    (Command.STOPPING_START, Asked.START_ENDED): Command.STOPPING,
    (Command.STOPPING_START, Asked.STOP_ENDED): Command.STARTING_UNWANTED,
    (Command.STARTING_UNWANTED, Asked.START_ENDED): Command.IDLE,
}


def step(command: Command, asked: Asked) -> Command:
    """The next state; raises AssertionError for a pair the table does not know."""
    try:
        return TABLE[command, asked]
    except KeyError:
        raise AssertionError(f"no row for {asked} while {command}") from None
