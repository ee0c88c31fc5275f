"""The outbox: the effects of the batch that is being handled, in the order they are to be carried out."""

from gpumodd.core.effects import Effect
from gpumodd.core.state import State


class Outbox:
    """Collects effects and numbers those that end in an event of their own."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._effects: list[Effect] = []

    def emit(self, *effects: Effect) -> None:
        """Add effects at the end."""
        self._effects += effects

    def emit_first(self, effect: Effect) -> None:
        """Put an effect before all others of the batch."""
        self._effects.insert(0, effect)

    def number(self) -> int:
        """A new effect id."""
        self._state.next_effect += 1
        return self._state.next_effect - 1

    def take(self) -> tuple[Effect, ...]:
        """Everything collected since the last time."""
        taken, self._effects = tuple(self._effects), []
        return taken
