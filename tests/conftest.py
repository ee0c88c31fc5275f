"""Fixtures for all tests."""

from tests.support.fixtures import sandbox, sandbox_possible

__all__ = ["sandbox", "sandbox_possible"]
