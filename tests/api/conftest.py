"""No client may cause a traceback in the log: checked after every test of the server."""

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def log_entries(caplog: pytest.LogCaptureFixture) -> Iterator[list]:
    """The structured log of the test; a test that provokes a bug clears it."""
    with structlog.testing.capture_logs() as entries, caplog.at_level(logging.WARNING):
        yield entries
    assert not [entry for entry in entries if entry["log_level"] == "error" or entry.get("exc_info")]
    assert not [record for record in caplog.records if record.name == "asyncio"]
