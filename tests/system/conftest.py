"""A daemon per test, on each backend: systemd with NVML in the sandbox, plain processes with simulated devices."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.sandbox import Sandbox


@pytest.fixture(params=["process", pytest.param("systemd", marks=pytest.mark.real)])
def new_daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Daemon]]:
    """Makes daemons that are not started yet; those that were are ended."""
    made: list[Daemon] = []
    box: Sandbox | None = request.getfixturevalue("sandbox") if request.param == "systemd" else None

    def make() -> Daemon:
        made.append(Daemon(tmp_path / f"d{len(made)}", box=box, nvml=box is not None))
        return made[-1]

    yield make
    for daemon in made:
        daemon.__exit__()


@pytest.fixture
def daemon(new_daemon: Callable[[], Daemon]) -> Daemon:
    """One daemon with four services and the modes chat, code, rag and huge; not started yet."""
    d = new_daemon()
    d.service("chat", 16000, "--load-s", "0.3")
    d.service("code", 15000, "--load-s", "0.2")
    d.service("embed", 5000, "--load-s", "0.1")
    d.service("tiny", 1000)
    d.mode("chat", "chat", "tiny")
    d.mode("code", "code", "embed")
    d.mode("rag", "embed", "tiny")
    d.mode("huge", "chat", "code")
    return d
