"""From a call to a reply line: look up, authorize, validate, call the handler, encode.

Knows the method table and the handlers, nothing of sockets. Whatever a handler raises ends here.
"""

import difflib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from gpumodd.api.access import authorize, lowered
from gpumodd.ports import PortError
from gpumodd.wire.codec import encode_error, encode_result
from gpumodd.wire.envelope import Call
from gpumodd.wire.errors import RpcError
from gpumodd.wire.methods import METHODS, PROTOCOL, Access, HelloParams, Method
from gpumodd.wire.types import Hello

if TYPE_CHECKING:
    from gpumodd.api.connection import Session

Handler = Callable[["Session", Any], Any]
Follow = Callable[[], Awaitable[None]]

log = structlog.get_logger("gpumodd.api")


class Reply(msgspec.Struct, frozen=True):
    """A result, and what the connection is to do after it was sent: `then` runs until the client is gone."""

    result: Any
    then: Follow


class Identity(msgspec.Struct, kw_only=True, frozen=True):
    """What `daemon.hello` says about the daemon."""

    version: str
    pid: int
    started_at: str


class Answer(msgspec.Struct, frozen=True):
    """A reply line, empty for a notification."""

    line: bytes
    then: Follow | None = None


class Dispatcher:
    """The served methods."""

    def __init__(self, handlers: Mapping[str, Handler], identity: Identity) -> None:
        unknown = sorted(set(handlers) - set(METHODS))
        if unknown:
            raise ValueError(f"handlers for undeclared methods: {', '.join(unknown)}")
        self._identity = identity
        self._served: dict[str, tuple[Method, Handler]] = {
            name: (METHODS[name], handler) for name, handler in handlers.items()
        }
        self._served.setdefault("daemon.hello", (METHODS["daemon.hello"], self._hello))

    @property
    def capabilities(self) -> list[str]:
        """The names of the served methods."""
        return sorted(self._served)

    def access_of(self, call: Call) -> Access:
        """What the called method needs; READ for one that does not exist."""
        method = METHODS.get(call.method)
        return Access.READ if method is None else method.access

    def begin(self, session: "Session", call: Call, *, may_wait: bool = True) -> Answer | Coroutine[Any, Any, Answer]:
        """Run the call. A handler that has to wait gives a coroutine; everything else is answered at once.

        Without `may_wait`, a handler that would have to is not begun and the call is refused.
        """
        try:
            served = self._served.get(call.method)
            if served is None:
                raise self._not_served(call.method)
            method, handler = served
            authorize(session.access, method)
            result = handler(session, method.decode_params(call.params))
        except Exception as error:
            return _failure(call, error)
        if type(result) is CoroutineType:
            if not may_wait:
                result.close()
                return _failure(call, _too_busy())
            return self._finish(call, result)
        return _success(call, result)

    async def _finish(self, call: Call, waiting: Awaitable[Any]) -> Answer:
        try:
            result = await waiting
        except Exception as error:
            return _failure(call, error)
        return _success(call, result)

    def _not_served(self, name: str) -> RpcError:
        close = difflib.get_close_matches(name[:100], self._served, n=1)
        hint = f"did you mean {close[0]}?" if close else "daemon.hello lists the methods in `capabilities`"
        return RpcError("method_not_found", f"cannot call {name[:100]!r}: there is no such method", hint=hint)

    def _hello(self, session: "Session", params: HelloParams) -> Hello:
        if params.role is not None:
            session.access = lowered(session.access, params.role)
        session.client = params.client or session.client
        session.actor = params.actor or session.actor
        return Hello(
            protocol=PROTOCOL,
            version=self._identity.version,
            pid=self._identity.pid,
            started_at=self._identity.started_at,
            capabilities=self.capabilities,
            role=session.access.name.lower(),
        )


def _too_busy() -> RpcError:
    return RpcError(
        "rate_limited",
        "cannot take another request: too many of this connection are not answered yet",
        hint="wait for some of the answers first",
        retry_after_s=1.0,
    )


def _success(call: Call, result: Any) -> Answer:
    then = None
    if type(result) is Reply:
        result, then = result.result, result.then
    if not call.id:
        return Answer(b"", then)
    try:
        return Answer(encode_result(call.id, result), then)
    except Exception as error:
        return _failure(call, error)


def _failure(call: Call, error: Exception) -> Answer:
    if isinstance(error, PortError):
        log.warning("not_answered", method=call.method[:100], code=error.code, error=error.message)
        error = RpcError("internal_error", error.message, hint=error.hint, details={"code": error.code})
    elif not isinstance(error, RpcError):
        # Our bug, not the client's: it gets no details, the log gets them all.
        log.error("handler_failed", method=call.method[:100], exc_info=error)
        error = RpcError(
            "internal_error",
            f"cannot answer {call.method[:100]}: the daemon made a mistake",
            hint="the daemon's log says more; please report it",
        )
    return Answer(encode_error(call.id, error) if call.id else b"")
