"""The listening socket: where it lies, who may use it, who removes it."""

import contextlib
import os
import socket
import stat
import subprocess
import sys
import textwrap

import anyio
import pytest

from gpumodd.api.listener import bind, open_listener
from gpumodd.ports import PortError
from tests.support.rpc import connected, serving


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def connect(path):
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


def test_the_default_place_is_private(tmp_path):
    listener = open_listener({"XDG_RUNTIME_DIR": str(tmp_path)})
    path = tmp_path / "gpumodd" / "gpumodd.sock"
    assert listener.path == str(path)
    assert (mode(path.parent), mode(path)) == (0o700, 0o600)
    listener.close()
    assert not path.exists()


def test_a_directory_left_open_is_closed(tmp_path):
    (tmp_path / "gpumodd").mkdir(mode=0o755)
    listener = open_listener({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert mode(tmp_path / "gpumodd") == 0o700
    listener.close()


def test_a_chosen_place_keeps_its_directory(tmp_path):
    tmp_path.chmod(0o755)
    listener = open_listener({"GPUMODD_SOCKET": str(tmp_path / "s")})
    assert (mode(tmp_path), mode(tmp_path / "s")) == (0o755, 0o600)
    listener.close()
    listener = open_listener({"GPUMODD_SOCKET": str(tmp_path / "new" / "er" / "s")})
    assert mode(tmp_path / "new" / "er") == 0o700
    listener.close()


def test_a_stale_socket_is_replaced(tmp_path):
    path = tmp_path / "s"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.listen()
    stale.close()
    listener = bind(str(path))
    connect(path).close()
    listener.close()
    assert not path.exists()


def test_a_living_one_is_not(tmp_path):
    path = tmp_path / "s"
    first = bind(str(path))
    with pytest.raises(PortError, match="another process listens there") as caught:
        bind(str(path))
    assert caught.value.code == "socket_in_use"
    connect(path).close()
    first.close()


def test_a_living_one_with_a_full_backlog_is_not(tmp_path):
    path = tmp_path / "s"
    first = socket.socket(socket.AF_UNIX)
    first.bind(str(path))
    first.listen(0)
    waiting = []
    with contextlib.suppress(BlockingIOError):
        while True:
            client = socket.socket(socket.AF_UNIX)
            waiting.append(client)
            client.setblocking(False)
            client.connect(str(path))
    with pytest.raises(PortError) as caught:
        bind(str(path))
    assert caught.value.code == "socket_in_use"
    for used in (*waiting, first):
        used.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_something_else_is_left_alone(tmp_path, kind):
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PortError, match="cannot listen on") as caught:
        bind(str(path))
    assert caught.value.hint
    assert path.is_symlink() or path.exists()


def test_another_ones_file_is_not_unlinked(tmp_path):
    path = tmp_path / "s"
    first = bind(str(path))
    path.unlink()
    second = bind(str(path))
    first.close()
    connect(path).close()
    second.close()
    assert not path.exists()
    second.close()


@pytest.mark.parametrize("path", ["/proc/nowhere/s", "/tmp/" + "x" * 200])
def test_impossible_places(path):
    with pytest.raises(PortError, match="cannot listen on") as caught:
        bind(path)
    assert "GPUMODD_SOCKET" in caught.value.hint


def test_no_place_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 987654)
    with pytest.raises(PortError, match="XDG_RUNTIME_DIR") as caught:
        open_listener({})
    assert "GPUMODD_SOCKET" in caught.value.hint


# -- sockets that systemd made

ACTIVATED = """
import asyncio, os, sys
from gpumodd.api.dispatch import Identity
from gpumodd.api.listener import open_listener
from gpumodd.api.server import Server
from gpumodd.ports import PortError

env = dict(os.environ, LISTEN_PID=str(os.getpid() + int(sys.argv[1])), LISTEN_FDS=sys.argv[2], LISTEN_FDNAMES="x")
try:
    listener = open_listener(env)
except PortError as error:
    sys.exit(error.message)
assert not [name for name in env if name.startswith("LISTEN_")], env
assert not os.get_inheritable(listener.socket.fileno())
print(listener.inherited, listener.path, flush=True)
identity = Identity(version="", pid=1, started_at="")
server = Server({"status.get": lambda session, params: "activated"}, identity=identity)
async def serve():
    serving = asyncio.create_task(server.serve(listener))
    await asyncio.to_thread(sys.stdin.read)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
asyncio.run(serve())
"""


def activated(sock, tmp_path, *, pid_offset=0, count="1"):
    """Start the script with `sock` as its file descriptor 3, as systemd would."""

    def pass_on():
        os.dup2(sock.fileno(), 3)
        os.set_inheritable(3, True)

    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(ACTIVATED), str(pid_offset), count],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=pass_on,  # noqa: PLW1509
        pass_fds=(3,),
        env=os.environ | {"GPUMODD_SOCKET": str(tmp_path / "own")},
    )


@pytest.fixture
def inherited(tmp_path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "inherited"))
    sock.listen()
    yield sock
    sock.close()


def test_an_inherited_socket_is_served_and_never_removed(tmp_path, inherited):
    waiting = connect(tmp_path / "inherited")  # before anybody serves
    waiting.settimeout(20)
    waiting.sendall(b'{"jsonrpc":"2.0","id":1,"method":"status.get"}\n')
    with activated(inherited, tmp_path) as daemon:
        assert daemon.stdout.readline().strip() == f"True {tmp_path / 'inherited'}"
        assert b"activated" in waiting.recv(1000)
        _, errors = daemon.communicate(timeout=20)
    assert (daemon.returncode, errors) == (0, "")
    connect(tmp_path / "inherited").close()
    waiting.close()


def test_a_socket_for_another_process_is_not_taken(tmp_path, inherited):
    with activated(inherited, tmp_path, pid_offset=1) as daemon:
        assert daemon.stdout.readline().strip() == f"False {tmp_path / 'own'}"
        daemon.communicate(timeout=20)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("count", ["", "x", "-1", "0"])
def test_nonsense_counts_as_nothing(tmp_path, inherited, count):
    with activated(inherited, tmp_path, count=count) as daemon:
        assert daemon.stdout.readline().startswith("False")
        daemon.communicate(timeout=20)


def test_an_inherited_socket_of_the_wrong_kind_is_an_error(tmp_path):
    tcp = socket.create_server(("127.0.0.1", 0))
    with tcp, activated(tcp, tmp_path) as daemon:
        _, errors = daemon.communicate(timeout=20)
    assert "cannot use the inherited sockets" in errors


# -- other users


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_another_user_is_turned_away(tmp_path):
    path = tmp_path / "s"
    ask = textwrap.dedent("""
        import os, socket, sys
        client = socket.socket(socket.AF_UNIX)
        os.chdir(os.path.dirname(sys.argv[1]))
        os.setresuid(65534, 65534, 65534)
        client.connect(os.path.basename(sys.argv[1]))
        try:
            client.sendall(b'{"jsonrpc":"2.0","id":1,"method":"status.get"}\\n')
        except BrokenPipeError:
            pass
        received = b""
        try:
            while data := client.recv(4096):
                received += data
        except ConnectionResetError:
            pass
        sys.stdout.write(received.decode())
    """)
    async with serving(path, {"status.get": lambda _s, _p: "secret"}), connected(path) as own:
        tmp_path.chmod(0o711)
        path.chmod(0o777)  # the credentials alone have to keep it out
        stranger = await anyio.run_process([sys.executable, "-I", "-c", ask, str(path)])
        said = stranger.stdout.decode()
        assert '"permission_denied"' in said
        assert '"id":null' in said
        assert "secret" not in said
        assert said.count("\n") == 1
        assert (await own.call("status.get"))["result"] == "secret"
