"""Whatever listens at the socket, gpumodctl ends in time, in one line, with exit code 3."""

import contextlib
import socket
import threading
import time

import pytest

from tests.ctl.conftest import run

GARBAGE = {
    "binary": b"\x00\xff\xfe\x00garbage\n",
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "deep": b"[" * 200_000 + b"\n",
    "not ours": b'{"hello":"world"}\n',
    "a list": b"[1,2,3]\n",
    "both": b'{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":"x"}}\n',
    "neither": b'{"jsonrpc":"2.0","id":1}\n',
    "broken UTF-8": b'{"jsonrpc":"2.0","id":1,"result":"\xff"}\n',
    "wrong shape": b'{"jsonrpc":"2.0","id":1,"result":{"mode":5}}\n',
    "a scalar": b'{"jsonrpc":"2.0","id":1,"result":17}\n',
    "an endless line": b"x" * 3_000_000,
    "half a line": b'{"jsonrpc":"2.0","id":1,"res',
    "nothing": b"",
}


@contextlib.contextmanager
def impostor(path, behave):
    """Accept connections and let `behave` have each."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    kept = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                kept.append(connection)
                with contextlib.suppress(OSError):
                    behave(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(timeout=20)
        for connection in kept:
            connection.close()
        assert not thread.is_alive()


def check(result):
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 500


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("line", ["status", "switch rag"])
def test_garbage(tmp_path, what, line):
    def behave(connection):
        connection.recv(65536)
        connection.sendall(GARBAGE[what])
        connection.shutdown(socket.SHUT_WR)

    path = tmp_path / "s"
    with impostor(path, behave):
        check(run(*line.split(), socket=path))


def test_an_error_that_is_none(tmp_path):

    def behave_well(connection):
        connection.recv(65536)
        connection.sendall(b'{"jsonrpc":"2.0","id":1,"error":["odd",7]}\n')

    path = tmp_path / "s"
    with impostor(path, behave_well):
        result = run("status", socket=path)
    assert result.returncode == 1
    assert "odd" in result.stderr


def test_closed_at_once(tmp_path):
    path = tmp_path / "s"
    with impostor(path, lambda connection: connection.close()):
        check(run("status", socket=path))


def test_turned_away_at_the_door(tmp_path):
    """What a full or foreign daemon says before it hangs up is told, though the request could not be sent."""

    def behave(connection):
        connection.sendall(
            b'{"jsonrpc":"2.0","id":null,"error":{"code":-32013,"message":"cannot take another connection",'
            b'"data":{"code":"too_many_connections","hint":"close some","details":{}}}}\n'
        )
        connection.close()

    path = tmp_path / "s"
    with impostor(path, behave):
        result = run("status", socket=path)
    assert result.returncode == 1
    assert result.stderr == "gpumodctl: cannot take another connection\nhint: close some\n"


@pytest.mark.parametrize("line", ["status", "mode status", "operation list", "simulate rag", "switch rag --no-wait"])
def test_never_an_answer(tmp_path, line):
    path = tmp_path / "s"
    with impostor(path, lambda connection: None):
        began = time.monotonic()
        result = run(*line.split(), socket=path, GPUMODCTL_TIMEOUT_S="0.3")
        check(result)
        assert "has not answered for 0.3 s" in result.stderr
        assert time.monotonic() - began < 20


def test_chatter_without_an_answer(tmp_path):
    stop = threading.Event()

    def behave(connection):
        while not stop.is_set():
            connection.sendall(b'{"jsonrpc":"2.0","method":"event","params":{}}\n' * 100)

    path = tmp_path / "s"
    with impostor(path, behave):
        check(run("status", socket=path, GPUMODCTL_TIMEOUT_S="0.3"))
        stop.set()


def test_nobody_accepts(tmp_path):
    path = tmp_path / "s"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(0)
    waiting = []
    with contextlib.suppress(BlockingIOError):
        while True:
            client = socket.socket(socket.AF_UNIX)
            waiting.append(client)
            client.setblocking(False)
            client.connect(str(path))
    check(run("status", socket=path, GPUMODCTL_TIMEOUT_S="0.3"))
    for used in (*waiting, listening):
        used.close()


@pytest.mark.parametrize("value", ["", "x", "-1", "0", "nan"])
def test_a_nonsensical_timeout_is_the_usual_one(machine, value):
    assert run("status", socket=machine, GPUMODCTL_TIMEOUT_S=value).returncode == 0


def test_strange_progress_is_no_reason_to_fail(tmp_path):
    def behave(connection):
        connection.recv(65536)
        connection.sendall(
            b'{"jsonrpc":"2.0","method":"progress","params":[1]}\n'
            b'{"jsonrpc":"2.0","method":"progress","params":{"operation":"7","state":"odd","step":{}}}\n'
            b'{"jsonrpc":"2.0","method":"nonsense","params":{}}\n'
            b'{"jsonrpc":"2.0","id":99,"result":{}}\n'
            b'{"jsonrpc":"2.0","id":1,"result":{"id":"7","kind":"switch","target":"rag","state":"succeeded"}}\n'
        )

    path = tmp_path / "s"
    with impostor(path, behave):
        result = run("switch", "rag", socket=path)
    assert (result.returncode, result.stdout) == (0, "Mode rag is active.\n")
