"""The host adapter against this machine: its memory, real files, real sockets."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpumodd.adapters import listeners
from gpumodd.adapters.clock import SystemClock
from gpumodd.adapters.host import LinuxHost
from gpumodd.ports import PortError

HOST = LinuxHost(SystemClock())
ME = f"pid {os.getpid()} ("


@contextmanager
def listening(address, family=socket.AF_INET, *, v6_only=None):
    with socket.socket(family) as listener:
        if v6_only is not None:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        try:
            listener.bind((address, 0))
        except OSError as error:
            pytest.skip(f"cannot bind {address}: {error}")
        listener.listen()
        yield listener.getsockname()[1]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_what_the_kernel_says():
    fact = HOST.memory()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1 << 20)
    assert abs(fact.mem_total_mib - total) <= 1
    assert 0 < fact.mem_available_mib <= fact.mem_total_mib
    assert abs(fact.at - SystemClock().boottime()) < 5


def test_the_unit_is_mib(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  2097152 kB\nMemFree: 1 kB\nMemAvailable:  1049599 kB\n\n")
    fact = LinuxHost(SystemClock(), proc=tmp_path).memory()
    assert (fact.mem_available_mib, fact.mem_total_mib) == (1024, 2048)


@pytest.mark.parametrize("text", [None, "", "MemTotal: 1 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n", "MemTotal:\n"])
def test_unreadable_memory_is_an_error(tmp_path, text):
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    with pytest.raises(PortError, match="cannot read the free memory") as caught:
        LinuxHost(SystemClock(), proc=tmp_path).memory()
    assert caught.value.code == "host_unreadable"


def test_what_a_process_holds_is_what_its_end_gives_back():
    grow = "held = bytearray(64 << 20); print(len(held), flush=True); input()"
    command = [sys.executable, "-S", "-c", grow]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        held = HOST.held_mib([process.pid])
        assert 64 <= held < 128
        assert HOST.held_mib([process.pid, process.pid]) >= 2 * held - 1
        process.communicate(b"\n")
    assert HOST.held_mib([process.pid]) == 0


@pytest.mark.parametrize("text", ["", "RssAnon:\n", "RssAnon: x kB\n", "Name: \udc80RssAnon: 4096 kB\n", "\0" * 99])
def test_a_process_that_says_nonsense_holds_nothing(tmp_path, text):
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text(text, errors="surrogateescape")
    assert LinuxHost(SystemClock(), proc=tmp_path).held_mib([7, 8]) == 0


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_readable_file_is_not_missing(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"")
    link = tmp_path / "link"
    link.symlink_to(file)
    assert HOST.missing_file(str(file)) == HOST.missing_file(str(link)) == ""


def test_a_model_directory_is_not_missing(tmp_path):
    assert HOST.missing_file(str(tmp_path)) == (
        f"{tmp_path} is a directory without a model in it (no config.json or params.json)"
    )
    (tmp_path / "config.json").write_text("{}")
    assert HOST.missing_file(str(tmp_path)) == ""


def test_what_is_missing_is_named(tmp_path):
    file = tmp_path / "model.gguf"
    assert HOST.missing_file(str(file)) == f"{file} does not exist"
    link = tmp_path / "link"
    link.symlink_to(file)
    assert HOST.missing_file(str(link)) == f"{link} is a link to {file}, which does not exist"
    file.touch()
    assert HOST.missing_file(f"{file}/x") == f"{file}/x cannot be read: not a directory"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "too many levels" in HOST.missing_file(str(loop))


def test_what_is_not_a_file_is_named_and_not_waited_for(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert HOST.missing_file(str(fifo)) == f"{fifo} is a FIFO, not a file"
    assert HOST.missing_file("/dev/null") == "/dev/null is a character device, not a file"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        assert HOST.missing_file(str(tmp_path / "s")) == f"{tmp_path / 's'} is a socket, not a file"


@pytest.mark.parametrize("path", ["", "a\0b", "/" + "x" * 5000, "/\ud800"])
def test_a_hostile_path_is_a_reason(path):
    assert HOST.missing_file(path)


@contextmanager
def somebody_else():
    """Root reads everything, so it asks as `nobody`."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unreadable_file_is_named_with_the_user():
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to others
        folder = Path(name)
        folder.chmod(0o755)
        closed, secret = folder / "closed", folder / "secret"
        closed.mkdir()
        (closed / "inside").touch()
        secret.touch()
        secret.chmod(0)
        closed.chmod(0)
        with somebody_else():
            answers = [HOST.missing_file(str(path)) for path in (secret, closed, closed / "inside")]
        closed.chmod(0o700)
    assert [answer.split(" cannot ")[0] for answer in answers] == [str(secret), str(closed), str(closed / "inside")]
    assert all("permission denied for user" in answer for answer in answers)


# --- ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "family", "v6_only", "taken", "free"),
    [
        ("127.0.0.1", socket.AF_INET, None, ["127.0.0.1", "0.0.0.0", "localhost", "::"], ["127.0.0.2", "::1"]),
        ("0.0.0.0", socket.AF_INET, None, ["127.0.0.1", "127.0.0.2", "0.0.0.0"], ["::1"]),
        ("::1", socket.AF_INET6, None, ["::1", "::"], ["127.0.0.1", "0.0.0.0"]),
        ("::", socket.AF_INET6, 0, ["::1", "::", "127.0.0.1", "0.0.0.0"], []),
        ("::", socket.AF_INET6, 1, ["::1", "::"], ["127.0.0.1", "0.0.0.0"]),
        ("::ffff:127.0.0.1", socket.AF_INET6, 0, ["127.0.0.1", "0.0.0.0", "::"], ["127.0.0.2", "::1"]),
    ],
)
async def test_who_listens(bound, family, v6_only, taken, free):
    with listening(bound, family, v6_only=v6_only) as port:
        for host in taken:
            assert (await HOST.listener(host, port)).startswith(ME), host
        for host in free:
            assert await HOST.listener(host, port) == "", host
        assert await HOST.listener(taken[0], port - 1 if port > 1024 else port + 1) != ME
    assert await HOST.listener(taken[0], port) == ""


@pytest.mark.parametrize(
    ("first", "second"),
    [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.2"), ("127.0.0.1", "127.0.0.1")],
)
async def test_the_verdict_is_the_kernel_s(first, second):
    """Whatever we say, a bind with SO_REUSEADDR (what servers use) decides."""
    with listening(first) as port, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        said = await HOST.listener(second, port)
        try:
            other.bind((second, port))
            other.listen()
        except OSError:
            assert said
        else:
            assert not said


async def test_a_bound_socket_that_does_not_listen_is_nobody():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert await HOST.listener("127.0.0.1", bound.getsockname()[1]) == ""


@pytest.mark.parametrize("host", ["no-such-host.invalid", "", "a" * 300, "\0"])
async def test_a_host_that_does_not_resolve(host):
    with listening("127.0.0.1") as port:
        assert isinstance(await HOST.listener(host, port), str)


async def test_another_process_is_named():
    with listening("127.0.0.1") as port:
        pass
    code = (
        "import socket, sys; s = socket.socket(); s.setsockopt(1, 2, 1); "
        f"s.bind(('127.0.0.1', {port})); s.listen(); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"\n"
        found = await HOST.listener("127.0.0.1", port)
    assert re.fullmatch(rf"pid {other.pid} \(python[\d.]*\)", found)
    assert await HOST.listener("127.0.0.1", port) == ""


async def test_a_listener_whose_process_is_hidden_is_named_by_user(tmp_path):
    """Another user's descriptors cannot be read; the socket still has an owner."""
    (tmp_path / "1").mkdir()
    with listening("127.0.0.1") as port:
        found = await LinuxHost(SystemClock(), proc=tmp_path).listener("127.0.0.1", port)
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    assert found == f"a program of user {user}"


async def test_without_netlink_the_tables_say_the_same(monkeypatch):
    with listening("127.0.0.1") as port, listening("::", socket.AF_INET6, v6_only=0) as other:

        def answers():
            return {
                (found.address, found.port, found.uid, found.inode)
                for each in (port, other)
                for found in HOST._listening(each)
            }

        exact = answers()

        def forbidden(port):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(listeners, "dump", forbidden)
        assert answers() == exact
        assert len(exact) == 2
        assert (await HOST.listener("127.0.0.1", port)).startswith(ME)
        assert (await HOST.listener("127.0.0.1", other)).startswith(ME)
