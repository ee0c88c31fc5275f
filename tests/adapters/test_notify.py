"""The notifier against real datagram sockets, as a service manager would listen."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from gpumodd.adapters.notify import SystemdNotifier


@contextmanager
def manager(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if address.startswith("@") else address)
        listener.settimeout(5)
        yield listener


@pytest.fixture(params=["path", "abstract"])
def address(request, tmp_path):
    return str(tmp_path / "notify") if request.param == "path" else f"@gpumodd-test-{os.getpid()}"


def test_what_the_manager_hears(address):
    with manager(address) as listener:
        notifier = SystemdNotifier.from_environment({"NOTIFY_SOCKET": address})
        notifier.ready()
        notifier.status("switching to rag: 1 of 3 ✓")
        notifier.watchdog()
        notifier.stopping()
        heard = [listener.recv(4096).decode() for _ in range(4)]
    assert heard == ["READY=1", "STATUS=switching to rag: 1 of 3 ✓", "WATCHDOG=1", "STOPPING=1"]


def test_a_status_is_one_assignment(address):
    with manager(address) as listener:
        SystemdNotifier(address).status("evil\nREADY=1\r\n\udc80" + "x" * 5000)
        heard = listener.recv(1 << 16).decode()
    assert heard.startswith("STATUS=evil READY=1 ?xxx")
    assert "\n" not in heard
    assert len(heard) < 1100


def test_the_variables_are_taken():
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    assert SystemdNotifier.from_environment(environ).watchdog_s == 3.0
    assert environ == {"HOME": "/"}


def test_a_child_does_not_inherit_them(tmp_path):
    code = (
        "import subprocess, sys; from gpumodd.adapters.notify import SystemdNotifier; "
        "SystemdNotifier.from_environment(); "
        "subprocess.run([sys.executable, '-c', 'import os; print(sorted(os.environ))'])"
    )
    environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "s"), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
    said = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout
    assert "HOME" in said or "PATH" in said
    assert "NOTIFY" not in said
    assert "WATCHDOG" not in said


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1000000"}, None),  # a patience without an address to write to
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "500000"}, 0.5),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),  # meant for another process
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "0"}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdog_s_patience(environ, watchdog_s):
    assert SystemdNotifier.from_environment(environ).watchdog_s == watchdog_s


@pytest.mark.parametrize("address", ["", "/no/such/socket", "@nobody-is-there", "vsock:2:1", "x", "/" + "x" * 300, "@"])
def test_a_manager_that_does_not_listen_is_no_error(address):
    notifier = SystemdNotifier(address)
    notifier.ready()
    notifier.status("fine")
    notifier.watchdog()
    notifier.stopping()


def test_a_manager_that_does_not_read_is_not_waited_for(address):
    with manager(address):
        notifier = SystemdNotifier(address)
        started = time.monotonic()
        for _ in range(5000):  # far more than a queue holds
            notifier.status("x" * 500)
        assert time.monotonic() - started < 10
