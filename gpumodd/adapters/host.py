"""The machine a service would start on: memory, files, ports. The port `Host`.

Owns how to ask /proc and how to say what was found. Only looks: it opens no port
and keeps no file open.
"""

import errno
import os
import pwd
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from anyio import to_thread

from gpumodd.adapters import listeners
from gpumodd.adapters.listeners import TCP_LISTEN, Address, Listener
from gpumodd.core.facts import HostFact
from gpumodd.ports import Clock, PortError

MODEL_DIRECTORY_MARKS = ("config.json", "params.json")  # the Hugging Face and the Mistral layout
KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class LinuxHost:
    """This machine, read anew at every question."""

    def __init__(self, clock: Clock, *, proc: Path = Path("/proc")) -> None:
        self._clock = clock
        self._proc = proc

    def memory(self) -> HostFact:
        """What the kernel thinks can be taken without swapping, and what there is."""
        path = self._proc / "meminfo"
        try:
            rows = (line.split() for line in path.read_text(encoding="ascii").splitlines())
            kib = {row[0]: int(row[1]) for row in rows if row and row[0] in ("MemTotal:", "MemAvailable:")}
            available, total = kib["MemAvailable:"], kib["MemTotal:"]
        except (OSError, ValueError, LookupError) as error:
            raise PortError(
                "host_unreadable",
                f"cannot read the free memory from {path}: {str(error) or type(error).__name__}",
                hint="the daemon needs /proc to be mounted",
            ) from error
        return HostFact(at=self._clock.boottime(), mem_available_mib=available // 1024, mem_total_mib=total // 1024)

    def held_mib(self, pids: Iterable[int]) -> int:
        """What these processes hold that only their end gives back: pages of their own and shared ones without a file.
        What they share with each other counts for each of them. A process that has just ended holds nothing."""
        return sum(_private_kib(self._proc / str(pid) / "status") for pid in pids) // 1024

    def missing_file(self, path: str) -> str:
        """Why this file, or model directory, cannot be read, as the end of "cannot start …: "; empty when it can.

        Never waits for a writer of a FIFO; a dead network mount may hold it up like any other access.
        """
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 - an embedded NUL has to arrive here as ValueError
            if stat.S_ISDIR(mode):
                return _unfit_directory(path)
            if not stat.S_ISREG(mode):
                return f"{path} is {KINDS.get(stat.S_IFMT(mode), 'not a file')}, not a file"
            # Permissions alone do not tell (network file systems, security modules): open it. O_NONBLOCK, because
            # what stat saw may have been replaced by a FIFO.
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            return _unreadable(path, error)
        except ValueError:
            return f"{path!r} is not a path"
        return ""

    async def listener(self, host: str, port: int) -> str:
        """Who would keep a service from binding there, as well as can be told; empty when nobody would."""
        return await to_thread.run_sync(self._listener, host, port)

    def _listener(self, host: str, port: int) -> str:
        wanted = _addresses(host)
        rivals = [found for found in self._listening(port) if _conflicts(found, wanted)]
        if not rivals:
            return ""
        owners = sorted(_owners(self._proc, {rival.inode for rival in rivals}))
        if owners:
            more = f" and {len(owners) - 1} more" if len(owners) > 1 else ""
            return f"pid {owners[0]} ({_comm(self._proc, owners[0])}){more}"
        return f"a program of user {_user(rivals[0].uid)}"

    def _listening(self, port: int) -> list[Listener]:
        try:
            found = list(listeners.dump(port))
        except OSError:  # a kernel without the module tcp_diag, or a sandbox that forbids netlink
            found = [*_by_table(self._proc / "net/tcp"), *_by_table(self._proc / "net/tcp6")]
        return [one for one in found if one.port == port]


def _private_kib(status: Path) -> int:
    with suppress(OSError, ValueError, LookupError):
        rows = (line.split() for line in status.read_text(encoding="utf-8", errors="replace").splitlines())
        return sum(int(row[1]) for row in rows if row and row[0] in ("RssAnon:", "RssShmem:"))
    return 0


def _conflicts(listener: Listener, wanted: list[Address]) -> bool:
    """Would a bind to one of these addresses, same port, fail because of this listener?"""
    own = _unmapped(listener.address)
    # A wildcard IPv6 socket takes IPv4 too unless it says that it does not.
    takes_all = own.version == 6 and own.is_unspecified and not listener.v6_only
    return any(
        own == address
        or (address.is_unspecified and (address.version == 6 or own.version == 4 or takes_all))
        or (own.is_unspecified and (own.version == address.version or takes_all))
        for address in wanted
    )


def _unmapped(address: Address) -> Address:
    """An IPv4 address in IPv6 notation (::ffff:127.0.0.1) is that IPv4 address."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _addresses(host: str) -> list[Address]:
    """The addresses a server given this host would bind; none when it does not resolve."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return []
    return [_unmapped(ip_address(str(address[0]).partition("%")[0])) for *_, address in found]


def _by_table(path: Path) -> Iterator[Listener]:
    """/proc/net/tcp or tcp6: addresses as 32-bit words in the order of the machine."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()[1:]
    except OSError:  # no IPv6 in this kernel
        return
    for line in lines:
        _, local, _, state, _, _, _, uid, _, inode, *_ = line.split()
        if int(state, 16) != TCP_LISTEN:
            continue
        words, _, port = local.partition(":")
        numbers = struct.unpack(f">{len(words) // 8}I", bytes.fromhex(words))
        yield Listener(
            address=ip_address(struct.pack(f"={len(numbers)}I", *numbers)),
            port=int(port, 16),
            uid=int(uid),
            inode=int(inode),
            cgroup_id=None,
        )


def _owners(proc: Path, inodes: set[int]) -> set[int]:
    """The processes that hold one of these sockets; another user's are not shown to us."""
    names = {f"socket:[{inode}]" for inode in inodes}
    pids = (int(entry) for entry in os.listdir(proc) if entry.isdecimal())  # noqa: PTH208 - thousands of names
    return {pid for pid in pids if not names.isdisjoint(_descriptors(f"{proc}/{pid}/fd"))}


def _descriptors(folder: str) -> Iterator[str]:
    """What a process has open; it may end, or close any of it, while we look."""
    with suppress(OSError):
        for descriptor in os.listdir(folder):  # noqa: PTH208
            with suppress(OSError):
                yield os.readlink(f"{folder}/{descriptor}")  # noqa: PTH115


def _comm(proc: Path, pid: int) -> str:
    try:
        name = (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return "just ended"
    return "".join(char if char.isprintable() else "?" for char in name)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _unfit_directory(path: str) -> str:
    entries = os.listdir(path)  # noqa: PTH208 - names are all that is needed
    if any(mark in entries for mark in MODEL_DIRECTORY_MARKS):
        return ""
    return f"{path} is a directory without a model in it (no {' or '.join(MODEL_DIRECTORY_MARKS)})"


def _unreadable(path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        try:
            return f"{path} is a link to {os.readlink(path)}, which does not exist"  # noqa: PTH115 - the raw text
        except OSError:
            return f"{path} does not exist"
    if error.errno == errno.EACCES:
        return f"{path} cannot be read: permission denied for user {_user(os.geteuid())}"
    return f"{path} cannot be read: {os.strerror(error.errno or 0).lower()}"
