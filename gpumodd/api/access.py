"""Who may do what: the peer's uid lets it in, its role and the method's access decide about each call.

Knows nothing of connections; what it refuses is an RpcError(`permission_denied`).
"""

import os
import socket
import struct

import msgspec

from gpumodd.wire.errors import RpcError
from gpumodd.wire.methods import Access, Method, Role

_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Peer(msgspec.Struct, frozen=True):
    """The process at the other end, as the kernel noted it when it connected."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """SO_PEERCRED of a connected Unix socket."""
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def admit(peer: Peer) -> None:
    """Let in the daemon's own user and nobody else."""
    if peer.uid != os.geteuid():
        raise RpcError(
            "permission_denied",
            f"cannot let uid {peer.uid} in: this socket serves uid {os.geteuid()} only",
            hint="run the client as the user that runs the daemon",
        )


def lowered(current: Access, role: Role) -> Access:
    """The access a connection has after asking for `role`, which must not be more than it has."""
    asked = Access[role.upper()]
    if asked > current:
        raise RpcError(
            "permission_denied",
            f"cannot raise this connection from {current.name.lower()} to {role}",
            hint="a role can only lower a connection's rights; open another connection",
        )
    return asked


def authorize(current: Access, method: Method) -> None:
    """Refuse a method that needs more than the connection has."""
    if method.access > current:
        raise RpcError(
            "permission_denied",
            f"cannot call {method.name}: it needs the role {method.access.name.lower()}, "
            f"this connection has {current.name.lower()}",
            hint="a role only lowers a connection's rights; open another connection",
        )
