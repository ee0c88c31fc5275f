"""The listening socket: made here or inherited from systemd, removed only by the one who made it.

Owns the socket file and nothing that is connected to it. Call `open_listener` while holding the state
directory's lock: between two daemons that start at once only the lock decides.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import MutableMapping
from pathlib import Path

from gpumodd.ports import PortError
from gpumodd.wire import paths

_FIRST_INHERITED_FD = 3  # sd_listen_fds(3)
_BACKLOG = 512


class Listener:
    """A listening Unix socket. `inherited` ones belong to systemd, and so does their file."""

    def __init__(self, sock: socket.socket, path: str, *, inherited: bool) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.path = path
        self.inherited = inherited
        self._identity = None if inherited else _identity(path)

    def close(self) -> None:
        """Stop listening; unlink the file if it is still the one that was made here."""
        self.socket.close()
        if self._identity is not None and _identity(self.path) == self._identity:
            with contextlib.suppress(OSError):
                os.unlink(self.path)  # noqa: PTH108
        self._identity = None


def open_listener(env: MutableMapping[str, str] | None = None) -> Listener:
    """The socket systemd passed, else a new one at its place; raises PortError.

    Takes LISTEN_* out of the environment, so that no child believes them.
    """
    env = os.environ if env is None else env
    fds = _inherited_fds(env)
    for fd in fds:
        listener = _adopt(fd)
        if listener is not None:
            return listener
    if fds:
        raise PortError(
            "socket_unusable",
            "cannot use the inherited sockets: none of them is a listening Unix stream socket",
            hint="gpumodd.socket needs ListenStream= with a path",
        )
    try:
        path = paths.socket_path(env)
        own_directory = not env.get("GPUMODD_SOCKET")
    except paths.PathError as error:
        raise PortError("socket_unusable", error.message, hint=error.hint) from None
    return bind(path, own_directory=own_directory)


def bind(path: str, *, own_directory: bool = False) -> Listener:
    """Listen at `path`, taking the place of a socket nobody listens on; raises PortError.

    Missing directories are made with mode 0700; with `own_directory` an existing one is made so, too.
    """
    if len(os.fsencode(path)) > paths.SOCKET_PATH_LIMIT:
        raise PortError(
            "socket_unusable",
            f"cannot listen on {path}: a socket's path has at most {paths.SOCKET_PATH_LIMIT} bytes",
            hint="set GPUMODD_SOCKET to a shorter path",
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _prepare_directory(Path(path).parent, own=own_directory)
        _bind(sock, path)
        sock.listen(_BACKLOG)
        return Listener(sock, path, inherited=False)
    except OSError as error:
        sock.close()
        raise PortError(
            "socket_unusable",
            f"cannot listen on {path}: {os.strerror(error.errno or errno.EIO).lower()}",
            hint="set GPUMODD_SOCKET to a path in a directory of yours",
        ) from None
    except PortError:
        sock.close()
        raise


def _inherited_fds(env: MutableMapping[str, str]) -> range:
    pid, count = env.pop("LISTEN_PID", ""), env.pop("LISTEN_FDS", "")
    env.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return range(0)
    return range(_FIRST_INHERITED_FD, _FIRST_INHERITED_FD + min(int(count), 64))


def _adopt(fd: int) -> Listener | None:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError:
        return None
    listening = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
    if not listening or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        return None
    name = sock.getsockname()
    return Listener(sock, os.fsdecode(name), inherited=True)


def _prepare_directory(directory: Path, *, own: bool) -> None:
    if not directory.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if own and stat.S_IMODE(directory.stat().st_mode) != 0o700:
        directory.chmod(0o700)


def _bind(sock: socket.socket, path: str) -> None:
    # The mode comes from the umask: a chmod afterwards would leave the socket open to others for a moment.
    umask = os.umask(0o177)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            sock.bind(path)
    finally:
        os.umask(umask)


def _remove_stale(path: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise PortError(
            "socket_unusable",
            f"cannot listen on {path}: something that is not a socket has that name",
            hint="move it away or set GPUMODD_SOCKET",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody listens
    raise PortError(
        "socket_in_use",
        f"cannot listen on {path}: another process listens there",
        hint="gpumodctl status tells whether it is gpumodd; GPUMODD_SOCKET chooses another path",
    )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
