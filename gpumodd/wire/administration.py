"""The shapes that speak of the daemon itself: who answers, its configuration, its end. Published with `types`."""

from msgspec import Struct, field


class Hello(Struct, kw_only=True):
    """Who answers, and what it can do: `capabilities` are the names of the methods it serves."""

    protocol: int
    version: str
    pid: int
    started_at: str
    capabilities: list[str]
    role: str = "admin"


class ConfigProblem(Struct, kw_only=True):
    """One mistake in the configuration and where it stands; `path` is the key inside the file."""

    message: str
    code: str = "invalid_config"
    file: str = ""
    line: int = 0
    column: int = 0
    path: str = ""
    hint: str = ""


class Reload(Struct, kw_only=True):
    """What a reload changed, by service and mode id. A file with an error keeps its last good state.

    `stale` are the running services that still run an older definition: a switch, or `restart_changed`, restarts them.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    errors: list[ConfigProblem] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


class ConfigCheck(Struct, kw_only=True):
    """Every mistake in the configuration on disk; empty when there is none."""

    problems: list[ConfigProblem] = field(default_factory=list)


class Shutdown(Struct, kw_only=True):
    """The daemon is about to end; `services_end` tells whether its services end with it."""

    services_end: bool
