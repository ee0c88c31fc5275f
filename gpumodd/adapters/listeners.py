"""A leaf that adapters share: which TCP socket answers at an address, asked from the kernel by NETLINK_SOCK_DIAG.

Owns the netlink message and the rule which of several listeners gets a connection. It does not say whose a listener
is: that depends on what a unit is made of.
"""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gpumodd.ports import PortError

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
TCP_LISTEN = 10
INET_DIAG_SKV6ONLY, INET_DIAG_CGROUP_ID = 11, 21  # attributes of linux/inet_diag.h
HEADER = struct.Struct("=IHHII")
MESSAGE = struct.Struct("=BBBBHH16s16sI8sIIIII")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One listening TCP socket."""

    address: Address
    port: int
    inode: int
    uid: int
    cgroup_id: int | None  # of the process that made the socket; None when the kernel does not say
    v6_only: bool = False


def listening(host: str, port: int) -> list[Listener]:
    """Those that a connection to host:port may reach, empty when nobody listens. Several only when they share the
    port (SO_REUSEPORT), or when a host name stands for several addresses."""
    candidates = [one for one in dump(port) if one.port == port]
    return _reached(candidates, addresses(host)) or _reached(candidates, loopbacks(host))


def _reached(candidates: list[Listener], wanted: list[Address]) -> list[Listener]:
    found: list[Listener] = []
    for address in wanted:
        for one in nearest(candidates, address):
            if one not in found:
                found.append(one)
    return found


def loopbacks(host: str) -> list[Address]:
    """Where this machine may also listen under a name that always means itself (RFC 6761): a hosts file often knows
    only one of the two, and a server may have taken the other."""
    name = host.rstrip(".").lower()
    local = name == "localhost" or name.endswith(".localhost")
    return [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")] if local else []


def unanswered(host: str, port: int, error: OSError) -> PortError:
    """Why nobody can say who listens there."""
    if isinstance(error, socket.gaierror):
        return PortError(
            "host_unknown",
            f"cannot resolve the host name {host}: {(error.strerror or str(error)).lower()}",
            hint="correct `host:`, or add the name to /etc/hosts",
        )
    return PortError(
        "driver_error", f"cannot ask who listens on {host}:{port}: {os.strerror(error.errno or 0).lower()}"
    )


def named(host: str) -> bool:
    """Is it a name, for which `listening` may have to wait? For an address it only asks the kernel."""
    try:
        _address(host)
    except ValueError:
        return True
    return False


def addresses(host: str) -> list[Address]:
    """Where a client that was given this host connects to."""
    try:
        address = _address(host)
    except ValueError:
        try:
            infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # longer, or emptier, than a part of a name may be
            raise socket.gaierror(socket.EAI_NONAME, f"not a host name: {error}") from error
        return [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos]
    if address.is_unspecified:  # Linux takes it for the loopback
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return [address]


def _address(host: str) -> Address:
    return ipaddress.ip_address(host.strip("[]").partition("%")[0])


def nearest(listeners: list[Listener], address: Address) -> list[Listener]:
    """The listeners with the best match: the exact address, then any of the family, then a dual-stack socket."""
    ranked: dict[int, list[Listener]] = {}
    for one in listeners:
        rank = _rank(one, address)
        if rank is not None:
            ranked.setdefault(rank, []).append(one)
    return ranked[min(ranked)] if ranked else []


def _rank(one: Listener, address: Address) -> int | None:
    bound = one.address
    if isinstance(bound, ipaddress.IPv6Address) and bound.ipv4_mapped:
        bound = bound.ipv4_mapped
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if bound == address:
        return 0
    if not bound.is_unspecified:
        return None
    if bound.version == address.version:
        return 1
    return 2 if bound.version == 6 and not one.v6_only else None


def dump(port: int = 0) -> Iterator[Listener]:
    """All listening TCP sockets of this network namespace, or those on one port."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            # inet_diag_req_v2: family, protocol, extensions, pad, states; then a socket id, where only the source
            # port is looked at.
            request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 1 << TCP_LISTEN)
            request += struct.pack("!H", port) + bytes(46)
            header = HEADER.pack(HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, 0)
            netlink.send(header + request)
            yield from _answers(netlink)


def _answers(netlink: socket.socket) -> Iterator[Listener]:
    while True:
        data = netlink.recv(1 << 18)
        while data:
            length, kind, *_ = HEADER.unpack_from(data)
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", data, HEADER.size)[0]
                raise OSError(code, "sock_diag")
            yield _listener(data[HEADER.size : length])
            data = data[(length + 3) & ~3 :]


def _listener(body: bytes) -> Listener:
    family, _, _, _, port, _, source, _, _, _, _, _, _, uid, inode = MESSAGE.unpack_from(body)
    attributes = dict(_attributes(body[MESSAGE.size :]))
    cgroup = attributes.get(INET_DIAG_CGROUP_ID)
    return Listener(
        address=ipaddress.ip_address(source[:4] if family == socket.AF_INET else source),
        port=socket.ntohs(port),
        inode=inode,
        uid=uid,
        cgroup_id=struct.unpack("=Q", cgroup)[0] if cgroup else None,
        v6_only=attributes.get(INET_DIAG_SKV6ONLY, b"\0") != b"\0",
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind, data[4:length]
        data = data[(length + 3) & ~3 :]
