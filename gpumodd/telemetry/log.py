"""The daemon's log lines: an event name, then keys, to stderr. The only place that configures structlog.

Owns levels and the three renderings: for a terminal, for the journal, and plain. What a client or a model server
sent cannot break a line, colour a terminal or fake a second entry. Loggers are never a reason to fail. The keys
`module`, `level` and `at` are the line's own.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Logger = FilteringBoundLogger

LEVELS = ("debug", "info", "warning", "error")
DEFAULT_LEVEL = "info"
# syslog's numbers, which the journal reads from the start of a line (sd-daemon(3))
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def get_logger(name: str) -> Logger:
    """The logger of a module: `log = get_logger(__name__)`, then `log.info("switch_started", target="rag")`."""
    if not structlog.is_configured():
        configure()
    logger: Logger = structlog.get_logger(module=name.removeprefix("gpumodd."))
    return logger


def configure(environ: Mapping[str, str] = os.environ) -> None:
    """Choose level and rendering from GPUMODD_LOG_LEVEL, NO_COLOR, JOURNAL_STREAM and what stderr is."""
    wanted = environ.get("GPUMODD_LOG_LEVEL", "").strip().lower() or DEFAULT_LEVEL
    level = wanted if wanted in LEVELS else DEFAULT_LEVEL
    structlog.configure(
        processors=[structlog.processors.add_log_level, *_rendering(environ)],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_Stderr,
        cache_logger_on_first_use=False,
    )
    logging.root.handlers[:] = [_Forward()]
    if level != wanted:
        get_logger(__name__).warning("log_level_unknown", wanted=wanted, used=level, known=" ".join(LEVELS))


def _rendering(environ: Mapping[str, str]) -> list[Processor]:
    safe: list[Processor] = [structlog.processors.format_exc_info, _visible_traceback]
    if _is_journal(environ):
        return [*safe, _journal_lines]
    if not sys.stderr.isatty():
        return [structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"), *safe, _plain_line]
    console = structlog.dev.ConsoleRenderer(
        colors=not environ.get("NO_COLOR") and environ.get("TERM") != "dumb",
        pad_event_to=0,
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False), *safe, _visible_values, console]


def _is_journal(environ: Mapping[str, str]) -> bool:
    """Is stderr the very stream that systemd connected to the journal? A redirected child inherits the variable."""
    with suppress(OSError, ValueError, AttributeError):
        status = os.fstat(sys.stderr.fileno())
        return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def _visible_traceback(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Indented, so that no line of an exception's text can pass for an entry of its own."""
    if traceback := event.get("exception"):
        event["exception"] = "\n".join(f"  {_visible(line)}" for line in str(traceback).split("\n"))
    return event


def _visible_values(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Values escaped for one line; a key without a value says nothing."""
    return {
        key: _visible(value) if isinstance(value, str) and key != "exception" else value
        for key, value in event.items()
        if value is not None
    }


def _plain_line(_: WrappedLogger, __: str, event: EventDict) -> str:
    """`event key=value … module=… level=info at=…`, and the traceback, if there is one, below it."""
    traceback = event.pop("exception", None)
    last = {key: event.pop(key) for key in ("module", "level", "at") if key in event}
    words = [_word(event.pop("event", "")), *(f"{key}={_word(value)}" for key, value in {**event, **last}.items())]
    line = " ".join(words)
    return f"{line}\n{traceback}" if traceback else line


def _journal_lines(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """The journal keeps level and time itself; each line carries its own priority."""
    priority = PRIORITIES.get(str(event.pop("level", "")), PRIORITIES["info"])
    return "\n".join(f"<{priority}>{line}" for line in _plain_line(logger, method, event).split("\n"))


def _word(value: object) -> str:
    """A value as one word, quoted when it would not be one."""
    text = value if isinstance(value, str) else str(value)
    if text and text.isprintable() and not any(char in text for char in " =\"'"):
        return text
    return _visible(json.dumps(text, ensure_ascii=False))


def _visible(text: str) -> str:
    """The text with everything escaped that a terminal or a line-based reader would act on."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Stderr:
    """Writes whole lines to whatever stderr is at the moment; a reader that went away stops nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = msg


class _Forward(logging.Handler):
    """What libraries say through the standard library comes out the same way."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        level = "warning" if record.levelno < logging.ERROR else "error"
        logger = get_logger(record.name)
        getattr(logger, level)("library_message", message=record.getMessage(), exc_info=record.exc_info)
