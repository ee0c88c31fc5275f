"""Which listener gets a connection, against real sockets of this machine."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from gpumodd.adapters import procfs
from gpumodd.adapters.listeners import dump, listening, loopbacks, unanswered


@contextmanager
def listen(host: str, port: int = 0, *, dual: bool = False, reuse: bool = False) -> Iterator[tuple[int, int]]:
    """A listening socket's port and inode."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.create_server((host, port), family=family, dualstack_ipv6=dual, reuse_port=reuse)
    with made:
        yield made.getsockname()[1], os.fstat(made.fileno()).st_ino


def inodes(host: str, port: int) -> set[int]:
    return {listener.inode for listener in listening(host, port)}


def reaches(host: str, port: int) -> bool:
    """The kernel's own opinion."""
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("bound", "dual", "asked"),
    [
        ("127.0.0.1", False, "127.0.0.1"),
        ("127.0.0.1", False, "127.0.0.2"),
        ("127.0.0.1", False, "::1"),
        ("0.0.0.0", False, "127.0.0.1"),
        ("0.0.0.0", False, "0.0.0.0"),
        ("0.0.0.0", False, "::1"),
        ("::", True, "127.0.0.1"),
        ("::", True, "::1"),
        ("::", True, "::"),
        ("::", False, "127.0.0.1"),
        ("::1", False, "127.0.0.1"),
        ("::1", False, "::1"),
        ("::ffff:127.0.0.1", True, "127.0.0.1"),
        ("127.0.0.1", False, "::ffff:127.0.0.1"),
        ("127.0.0.1", False, "localhost"),
    ],
)
def test_it_finds_the_listener_that_the_kernel_would_connect_to(bound: str, dual: bool, asked: str) -> None:
    with listen(bound, dual=dual) as (port, inode):
        assert inodes(asked, port) == ({inode} if reaches(asked, port) else set())


def test_an_exact_address_wins_over_the_wildcard() -> None:
    with ExitStack() as stack:
        port, wild = stack.enter_context(listen("0.0.0.0", reuse=True))
        _, exact = stack.enter_context(listen("127.0.0.1", port, reuse=True))
        assert inodes("127.0.0.1", port) == {exact}
        assert inodes("127.0.0.2", port) == {wild}


def test_who_shares_a_port_is_listed_too() -> None:
    with ExitStack() as stack:
        port, one = stack.enter_context(listen("127.0.0.1", reuse=True))
        _, other = stack.enter_context(listen("127.0.0.1", port, reuse=True))
        assert inodes("127.0.0.1", port) == {one, other}


def test_nobody_listens() -> None:
    with listen("127.0.0.1") as (port, _):
        pass
    assert listening("127.0.0.1", port) == []


def test_a_connection_is_no_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = client.getsockname()[1]
        assert listening("127.0.0.1", port) == []


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(socket.gaierror):
        listening("nobody.invalid", 80)


def test_it_says_whose_it_is() -> None:
    with listen("127.0.0.1") as (port, inode):
        (found,) = listening("127.0.0.1", port)
        assert found.uid == os.getuid()
        assert inode in procfs.socket_inodes(os.getpid())
        mount, cgroup = procfs.cgroup_mount(), procfs.cgroup(os.getpid())
        if mount is not None and cgroup is not None and found.cgroup_id is not None:
            assert found.cgroup_id == (mount / cgroup.lstrip("/")).stat().st_ino


def test_the_whole_dump_has_every_listener() -> None:
    with ExitStack() as stack:
        ports = {stack.enter_context(listen("127.0.0.1"))[0] for _ in range(200)}
        assert ports <= {listener.port for listener in dump()}


@pytest.mark.parametrize("bound", ["127.0.0.1", "::1"])
def test_localhost_is_this_machine_whatever_its_hosts_file_says(bound: str) -> None:
    with listen(bound) as (port, inode):
        assert inodes("localhost", port) == {inode}


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "app.localhost"])
def test_names_that_always_mean_this_machine(name: str) -> None:
    assert [str(address) for address in loopbacks(name)] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 64, "a..b"])
def test_a_name_that_stands_for_nothing(name: str) -> None:
    with pytest.raises(socket.gaierror) as unknown:
        listening(name, 80)
    error = unanswered(name, 80, unknown.value)
    assert (error.code, error.message.startswith(f"cannot resolve the host name {name}: ")) == ("host_unknown", True)
    assert "[Errno" not in error.message


def test_what_the_name_stands_for_here_comes_first() -> None:
    with listen("127.0.0.1") as (port, own), listen("::1", port) as (_, other):
        first = socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)
        assert inodes("localhost", port) == ({own, other} if len(first) > 1 else {own})


def test_no_other_name_is_taken_for_this_machine() -> None:
    assert [loopbacks(name) for name in ("127.0.0.1", "::1", "localhost.example", "notlocalhost", "")] == [[]] * 5
