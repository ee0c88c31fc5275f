"""Fixtures that many tests share; `tests/conftest.py` imports them."""

import os
from collections.abc import Iterator

import pytest

from tests.support.sandbox import Sandbox, missing


def require_real(reason: str) -> None:
    """Skip a test whose real component cannot run here; where everything real is required, fail it."""
    if reason and os.environ.get("GPUMOD_REQUIRE_REAL") == "1":
        pytest.fail(f"GPUMOD_REQUIRE_REAL=1: {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def sandbox_possible() -> None:
    """For tests that make sandboxes of their own."""
    require_real(missing())


@pytest.fixture(scope="session")
def sandbox(sandbox_possible: None) -> Iterator[Sandbox]:
    """One sandbox for all tests: each uses services of its own and leaves nothing running."""
    with Sandbox() as box:
        yield box
