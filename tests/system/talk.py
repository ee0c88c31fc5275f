"""One raw connection to a running daemon: lines out, lines in, nothing hidden."""

import json
import os
import socket
from typing import Any, Self

LINE = 1024 * 1024


class Talk:
    """`with Talk(path) as talk:` connects; a line that does not come within the patience fails the test."""

    def __init__(self, path: object, *, patience_s: float = 20.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(patience_s)
        self.socket.connect(os.fspath(path))  # type: ignore[arg-type]
        self._lines = self.socket.makefile("rb")
        self._next = 0
        self._early: list[dict[str, Any]] = []  # replies that came before one that was waited for
        self.unasked: list[dict[str, Any]] = []  # notifications that came before a reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lines.close()
        self.socket.close()

    def send(self, message: object) -> None:
        """Bytes as they are, anything else as a line of JSON."""
        self.socket.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")

    def read(self) -> Any:
        """The next message; fails at the end of the stream."""
        line = self._lines.readline()
        assert line.endswith(b"\n"), f"the connection ended after {line[:100]!r}"
        assert len(line) <= LINE
        return json.loads(line)

    def ask(self, method: str, **params: Any) -> int:
        """Send a request without waiting; returns its id."""
        self._next += 1
        self.send({"jsonrpc": "2.0", "id": self._next, "method": method, "params": params})
        return self._next

    def reply(self, id: object) -> dict[str, Any]:
        """The reply to this request, whatever comes before it."""
        while not (found := [m for m in self._early if m["id"] == id]):
            message = self.read()
            (self.unasked if "method" in message else self._early).append(message)
        self._early.remove(found[0])
        assert found[0]["jsonrpc"] == "2.0"
        return found[0]

    def call(self, method: str, **params: Any) -> Any:
        """The result; an error reply fails the test."""
        message = self.reply(self.ask(method, **params))
        assert "error" not in message, message
        return message["result"]

    def refused(self, method: str, **params: Any) -> dict[str, Any]:
        """The error object; a result fails the test."""
        message = self.reply(self.ask(method, **params))
        assert "result" not in message, message
        error = message["error"]
        assert set(error["data"]) - {"retry_after_s"} == {"code", "hint", "details"}
        return error

    def event(self, topic: str | None = None, **data: Any) -> dict[str, Any]:
        """The next notification `event` of this topic whose data has these values."""
        while True:
            message = self.read()
            params = message["params"]
            assert message["method"] == "event"
            if topic in (None, params["topic"]) and data.items() <= params["data"].items():
                return params
