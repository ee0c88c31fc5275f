"""Errors as they travel: a JSON-RPC number for machines that switch on it, a word for those that read.

`RpcError` is what a handler raises to refuse; anything else it raises is a bug and reaches the client as
`internal_error` without details.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

NUMBERS: Mapping[str, int] = MappingProxyType(
    {
        "parse_error": -32700,
        "invalid_request": -32600,
        "method_not_found": -32601,
        "invalid_params": -32602,
        "internal_error": -32603,
        "permission_denied": -32001,
        "not_found": -32004,
        "invalid_config": -32005,
        "timeout": -32008,
        "conflict": -32009,
        "refused": -32010,
        "failed": -32011,
        "too_large": -32013,
        "too_many_connections": -32013,
        "rate_limited": -32013,
    }
)


class ErrorData(Struct, kw_only=True):
    """The `data` of every error object."""

    code: str = ""
    hint: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    retry_after_s: float | UnsetType = UNSET


class ErrorObject(Struct, kw_only=True):
    """JSON-RPC's error object. A foreign server may leave `data` out."""

    code: int
    message: str
    data: ErrorData = field(default_factory=ErrorData)


class RpcError(Exception):
    """A request that is answered with an error.

    `code` is a key of NUMBERS, `message` reads "cannot …" with the value in it, `hint` says what would help.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.number = NUMBERS[code]
        self.message = message
        self.hint = hint
        self.details = dict(details or {})
        self.retry_after_s = retry_after_s

    def as_object(self) -> ErrorObject:
        """The shape that goes over the wire."""
        return ErrorObject(
            code=self.number,
            message=self.message,
            data=ErrorData(
                code=self.code,
                hint=self.hint,
                details=self.details,
                retry_after_s=UNSET if self.retry_after_s is None else self.retry_after_s,
            ),
        )
