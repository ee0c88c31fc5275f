"""gpumodd.yaml and the environment as settings, and where each of them comes from.

Owns the daemon's own settings, the sections of drivers from other packages included.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpumodd.config import environment, schema, validate
from gpumodd.config.document import Document, Place, dotted
from gpumodd.config.errors import ConfigProblem, shown
from gpumodd.config.validate import problem_at
from gpumodd.drivers.api import DriverContext
from gpumodd.drivers.registry import BUILT_IN, Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key with its value, and who says so: `gpumodd.yaml:3:5`, `environment GPUMODD_…` or `default`."""

    value: object
    source: str
    default: object = None

    @property
    def chosen(self) -> bool:
        """Does it differ from the default, or come from where nobody looks?"""
        return self.value != self.default or self.source.startswith("environment ")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsRead:
    """What was found; with problems, defaults stand in for what is wrong."""

    settings: schema.Settings
    plugins: Mapping[str, schema.PluginSection] = field(default_factory=dict)
    by_key: Mapping[str, Setting] = field(default_factory=dict)
    problems: list[ConfigProblem] = field(default_factory=list)

    def context(self, driver: str) -> DriverContext:
        """The driver's section; `~` in the program's path is expanded."""
        section = self.plugins.get(driver) or getattr(self.settings.drivers, driver, None)
        values: dict[str, Any] = {} if section is None else section.model_dump()
        command: tuple[str, ...] = tuple(values.pop("command", ()))
        if command and command[0].startswith("~"):
            command = (_expanded(command[0]), *command[1:])
        return DriverContext(command=command, settings=values)


def read(main: Document, environ: Mapping[str, str], registry: Registry) -> SettingsRead:
    """The settings in this document, overridden by this environment."""
    found, problems = environment.overrides(environ)
    main = environment.merge(main, found)
    own, theirs = _apart(main, registry)
    settings, wrong = validate.model(schema.Settings, main, own, as_written=[("drivers",)])
    problems += wrong
    sound = settings is not None
    settings = settings or schema.Settings()
    plugins = {}
    for name, value in theirs.items():
        place: Place = ("drivers", name)
        below = (*place, "command")
        section, wrong = validate.model(schema.PluginSection, main, value, place, as_written=[below])
        problems += wrong
        if section is not None:
            plugins[name] = section
    values = settings.model_dump()
    values["drivers"] |= {name: section.model_dump() for name, section in plugins.items()}
    problems += _programs(main, values["drivers"])
    problems += _table(main, settings.devices.table)
    defaults = dict(_leaves(schema.Settings().model_dump()))
    by_key = {
        dotted(place): Setting(
            value=value, source=_source(main, place) if sound else "default", default=defaults.get(place)
        )
        for place, value in _leaves(values)
    }
    return SettingsRead(settings=settings, plugins=plugins, by_key=by_key, problems=problems)


def _apart(main: Document, registry: Registry) -> tuple[object, dict[str, object]]:
    """The settings without the sections of drivers from other packages, and those: their shape is their own."""
    value = main.value
    if not isinstance(value, dict) or not isinstance(value.get("drivers"), dict):
        return value, {}
    ours = {*schema.DriversSection.model_fields, *(driver.name for driver in BUILT_IN)}
    plugins = set(registry.drivers) - ours
    sections = value["drivers"]
    theirs = {name: section for name, section in sorted(sections.items()) if name in plugins}
    rest = {name: section for name, section in sections.items() if name not in plugins}
    return {**value, "drivers": rest}, theirs


def _programs(main: Document, drivers: Mapping[str, Mapping[str, Any]]) -> Iterator[ConfigProblem]:
    """A program is a name for PATH or a whole path: a daemon has no directory for others to start at."""
    for name, section in drivers.items():
        program = next(iter(section.get("command", ())), None)
        if program is None or program.startswith("/") or (program and "/" not in program and program[0] != "~"):
            continue
        if not program.startswith("~") or not _expanded(program).startswith("/"):
            message = f"cannot use the program {shown(program)}: it is neither a name nor a whole path"
            yield problem_at(main, ("drivers", name, "command", 0), message)


def _table(main: Document, path: str | None) -> Iterator[ConfigProblem]:
    """The same for the file of the simulated devices."""
    if path is not None and not _expanded(path).startswith("/"):
        yield problem_at(main, ("devices", "table"), f"cannot use the file {shown(path)}: it is not a whole path")


def _expanded(path: str) -> str:
    """`~` expanded; as it is when there is no such home directory."""
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


def _leaves(value: Mapping[str, Any], place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The settings one by one, sections taken apart."""
    for key, item in value.items():
        here = (*place, key)
        if isinstance(item, Mapping):
            yield from _leaves(item, here)
        else:
            yield here, item


def _source(main: Document, place: Place) -> str:
    if place not in main.marks:
        return "default"
    if (origin := main.origin(place)) != main.file:
        return f"environment {origin.removeprefix('$')}"
    return f"{main.file}:{main.marks[place].line}:{main.marks[place].column}"
