"""Exit codes, and which error leads to which."""

from typing import Any

from gpumodd.wire.errors import NUMBERS, ErrorObject

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
REFUSED = 4
ROLLED_BACK = 5
INTERRUPTED = 130


def of_error(error: ErrorObject) -> int:
    """The exit code for an error the daemon answered with."""
    if error.code in (NUMBERS["not_found"], NUMBERS["invalid_params"]):
        return USAGE
    if error.code == NUMBERS["refused"]:
        return REFUSED
    if error.code == NUMBERS["failed"]:
        operation: Any = error.data.details.get("operation")
        return of_state(operation.get("state", "")) if isinstance(operation, dict) else FAILED
    return FAILED


def of_state(state: str) -> int:
    """The exit code for an operation that has ended."""
    if state == "succeeded":
        return OK
    return ROLLED_BACK if state == "rolled_back" else FAILED
