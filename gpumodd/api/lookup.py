"""Looking up what a client names: ids and aliases, or `not_found` with what exists."""

import difflib
from collections.abc import Iterable

from gpumodd.api.views import Views
from gpumodd.core.specs import ModeSpec
from gpumodd.wire.errors import RpcError


class Lookup:
    """Looks at the state as it is when it is asked."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def service(self, wanted: str) -> str:
        """The id behind an id or alias of whatever is shown as a service."""
        ids = self._views.service_ids()
        if wanted in ids:
            return wanted
        if (meant := self.by_alias(wanted)) is not None:
            return meant
        raise not_found("service", wanted, ids)

    def configured(self, wanted: str) -> str:
        """The same among what is configured."""
        meant = self.by_alias(wanted)
        if meant is None:
            raise not_found("service", wanted, self._views.state.catalog.services)
        return meant

    def by_alias(self, wanted: str) -> str | None:
        """The configured service with this id or alias."""
        specs = self._views.state.catalog.services
        if wanted in specs:
            return wanted
        return next((spec.id for spec in specs.values() if wanted in spec.aliases), None)

    def mode(self, wanted: str) -> ModeSpec:
        """The mode with this id."""
        modes = self._views.state.catalog.modes
        if wanted not in modes:
            raise not_found("mode", wanted, modes)
        return modes[wanted]


def not_found(what: str, wanted: str, existing: Iterable[str]) -> RpcError:
    """The error for what does not exist, with what does."""
    ids = sorted(existing)
    close = difflib.get_close_matches(wanted[:100], ids, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return RpcError(
        "not_found",
        f"cannot find {what} {wanted[:100]!r}",
        hint=f"{meant}existing: {', '.join(ids) or 'none'}",
        details={"existing": ids},
    )
