"""Intents: wishes on trial, as plain data, and what would be desired if one of them were granted.

Nothing of an intent is in force. Owns the shape and the arithmetic; how one comes about and what speaks against it
is in `core.requests`.
"""

from dataclasses import dataclass

from gpumodd.core import desired as wishes
from gpumodd.core.desired import Desired
from gpumodd.core.facts import InspectFact
from gpumodd.core.operations import Kind
from gpumodd.core.specs import Catalog, ModeSpec, OnFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A wish on trial. It says what is asked for, never what that leads to: the world moves until it is judged."""

    kind: Kind
    target: str
    on_failure: OnFailure
    mode: ModeSpec | None = None  # what a switch is to make true, as it was when it was asked for
    requests: tuple[int, ...] = ()  # who waits for the verdict; nobody: the engine's own repair
    actor: str = ""
    force: bool = False
    quiesce: bool = True
    scope: tuple[str, ...] | None = None
    restarts: tuple[str, ...] = ()
    inquiry: int = 0  # the effect that gathers its facts
    facts: tuple[InspectFact, ...] | None = None  # what it is judged on, once it is in

    def covers(self, service: str) -> bool:
        """Is this service its business?"""
        return self.scope is None or service in self.scope

    def wish(self, before: Desired, catalog: Catalog) -> Desired:
        """What would be desired, if this is desired when it is granted."""
        specs = catalog.services
        match self.kind:
            case Kind.SWITCH if self.mode is not None:
                return wishes.after_switch(before, self.mode, specs)
            case Kind.START | Kind.RESTART:
                return wishes.after_start(before, self.target, specs)
            case Kind.STOP:
                return wishes.after_stop(before, self.scope or (), specs)
            case _:
                return before
