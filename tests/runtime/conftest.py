"""The runtime logs as in the daemon: a traceback that is drawn with everything around it takes seconds."""

import logging

import pytest
import structlog

from gpumodd.telemetry import log


@pytest.fixture(autouse=True)
def as_the_daemon_logs():
    handlers = logging.root.handlers[:]
    log.configure()
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
