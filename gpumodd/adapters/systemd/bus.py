"""One connection to the user's D-Bus: calls, signals, and the certainty that its loss is noticed.

Owns the raw sdbus messages and the only translation of D-Bus errors to PortError. It knows nothing of units. A
connection that is lost stays lost: whoever needs another opens one.
"""

import asyncio
import contextlib
import os
import select
from collections.abc import Callable
from typing import Any, cast

import anyio
import sdbus
from sdbus.exceptions import SdBusBaseError, SdBusLibraryError, SdBusUnmappedMessageError

from gpumodd.ports import PortError

SYSTEMD = "org.freedesktop.systemd1"
SYSTEMD_PATH = "/org/freedesktop/systemd1"
PROPERTIES = "org.freedesktop.DBus.Properties"
BUS = "org.freedesktop.DBus"

CODES = {
    f"{SYSTEMD}.NoSuchUnit": "unit_missing",
    f"{SYSTEMD}.LoadFailed": "unit_invalid",
    f"{SYSTEMD}.BadUnitSetting": "unit_invalid",
    f"{SYSTEMD}.UnitMasked": "unit_invalid",
    f"{BUS}.Error.AccessDenied": "permission_denied",
    f"{BUS}.Error.AuthFailed": "permission_denied",
    f"{BUS}.Error.InteractiveAuthorizationRequired": "permission_denied",
    f"{BUS}.Error.Disconnected": "bus_lost",
    f"{BUS}.Error.NameHasNoOwner": "bus_lost",
    f"{BUS}.Error.NoReply": "bus_lost",
    f"{BUS}.Error.NoServer": "bus_lost",
    f"{BUS}.Error.ServiceUnknown": "bus_lost",
    f"{BUS}.Error.Timeout": "bus_lost",
}
HINTS = {
    "bus_lost": "is `systemctl --user status` working in this session?",
    "permission_denied": "the daemon must run as the user whose services it manages",
}
BROKEN = (SdBusBaseError, OSError)


class Readers:
    """The event loop as one sdbus connection sees it: it can only take back the readers that it has put there.

    When the bus hangs up, libsystemd closes the descriptor at once, and its number soon is another file's: a client's
    connection, a child's pidfd. sdbus 0.14.3 goes on to remove the loop's readers of that number when the connection
    is closed and once more when it is deallocated: an error at best, at worst somebody else who waits for ever.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reading: set[int] = set()
        self._writing: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        self._reading.add(fd)
        self._loop.add_reader(fd, self._drive, callback)

    def add_writer(self, fd: int, callback: Callable[[], object]) -> None:
        self._writing.add(fd)
        self._loop.add_writer(fd, self._drive, callback)

    def remove_reader(self, fd: int) -> None:
        if fd in self._reading:
            self._reading.remove(fd)
            self._loop.remove_reader(fd)

    def remove_writer(self, fd: int) -> None:
        if fd in self._writing:
            self._writing.remove(fd)
            self._loop.remove_writer(fd)

    def _drive(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BROKEN:  # of no use any more, and its descriptor may be closed; the look at the hang-up tells
            for fd in list(self._reading):
                self.remove_reader(fd)
            for fd in list(self._writing):
                self.remove_writer(fd)


class Connection:
    """Open until `lost` is set. Every call ends at the latest when the connection does."""

    def __init__(self) -> None:
        """Raises PortError when there is no bus; whether anyone answers on it shows with the first call."""
        try:
            self._bus = _bound(sdbus.sd_bus_open_user(), asyncio.get_running_loop())
            # sdbus neither ends its signal streams nor raises when the bus goes away. A second, silent look at the same
            # socket sees the hang-up at once; `ping` finds a bus that hangs without hanging up.
            self._socket = os.dup(self._bus.get_fd())
        except BROKEN as error:
            raise port_error(error, "reach the user's D-Bus") from error
        self._slots: list[Any] = []
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._hangup = select.epoll()
        self._hangup.register(self._socket, select.EPOLLRDHUP)
        asyncio.get_running_loop().add_reader(self._hangup.fileno(), self.lose, "the bus closed the connection")

    @property
    def lost(self) -> str:
        """Why this connection is of no use any more, or an empty string."""
        return self._lost.result() if self._lost.done() else ""

    def lose(self, reason: str) -> None:
        """Give it up; everything that waits for an answer ends."""
        if not self._lost.done():
            self._lost.set_result(reason)
            asyncio.get_running_loop().remove_reader(self._hangup.fileno())

    async def wait_lost(self) -> str:
        await asyncio.wait({self._lost})
        return self._lost.result()

    def close(self) -> None:
        """Once."""
        self.lose("closed")
        self._hangup.close()
        os.close(self._socket)
        for slot in self._slots:
            slot.close()
        self._slots.clear()
        self._bus.close()

    async def call(self, what: str, path: str, member: str, signature: str = "", *args: Any) -> Any:
        """Call a method, `member` with its interface before it; `what` completes "cannot …" in the error."""
        if self.lost:
            raise PortError("bus_lost", f"cannot {what}: {self.lost}", hint=HINTS["bus_lost"])
        interface, _, name = member.rpartition(".")
        target = BUS if interface == BUS else SYSTEMD
        try:
            message = self._bus.new_method_call_message(target, path, interface, name)
            if signature:
                message.append_data(signature, *args)
            answer = self._bus.call_async(message)
        except BROKEN as error:
            raise port_error(error, what) from error
        return await self._answer(what, answer)

    async def _answer(self, what: str, answer: asyncio.Future[Any]) -> Any:
        answer.add_done_callback(_look_at)
        await asyncio.wait({answer, self._lost}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise PortError("bus_lost", f"cannot {what}: {self.lost}", hint=HINTS["bus_lost"])
        try:
            return answer.result().get_contents()
        except BROKEN as error:
            raise port_error(error, what) from error

    async def on_signal(self, sender: str, member: str, callback: Callable[[str, Any], None]) -> None:
        """Call back with (object path, contents) for every such signal, in the order of the bus; `member` has its
        interface before it."""
        interface, _, name = member.rpartition(".")

        def unpack(message: Any) -> None:
            callback(message.path or "", message.get_contents())

        try:
            self._slots.append(await self._bus.match_signal_async(sender, None, interface, name, unpack))
        except BROKEN as error:
            raise port_error(error, f"watch {member}") from error

    async def ping(self, *, every_s: float, answer_s: float) -> None:
        """Until it is lost, make sure that the manager answers."""
        while not self.lost:
            with anyio.move_on_after(every_s):
                await self.wait_lost()
                return
            try:
                with anyio.fail_after(answer_s):
                    await self.call("ping the user manager", SYSTEMD_PATH, f"{BUS}.Peer.Ping")
            except TimeoutError:
                self.lose(f"the user manager has not answered for {answer_s:g} s")
            except PortError as error:
                self.lose(error.message)


def _bound(bus: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """sdbus keeps the loop that runs when it is first driven: let that be ours."""
    asyncio._set_running_loop(cast("asyncio.AbstractEventLoop", Readers(loop)))
    try:
        bus.process()
    finally:
        asyncio._set_running_loop(loop)
    return bus


def _look_at(answer: asyncio.Future[Any]) -> None:
    """Nobody may be waiting any more; asyncio would complain about an error that nobody has seen."""
    if not answer.cancelled():
        answer.exception()


def port_error(error: BaseException, what: str) -> PortError:
    """Our name for what the bus said, with its own words at the end."""
    if isinstance(error, SdBusUnmappedMessageError) and len(error.args) == 2:
        name, text = map(str, error.args)
    else:
        name, text = str(getattr(error, "dbus_error_name", "")), " ".join(map(str, error.args))
    code = CODES.get(name, "driver_error")
    if isinstance(error, SdBusLibraryError | OSError):
        code, text = "bus_lost", _errno(text)
    return PortError(code, f"cannot {what}: {text.strip().rstrip('.') or name}", hint=HINTS.get(code, ""))


def _errno(text: str) -> str:
    """sdbus tells the place in its C source and then a number; people want the number's name."""
    with contextlib.suppress(ValueError):
        return os.strerror(int(text.rpartition(" ")[2]))
    return text
