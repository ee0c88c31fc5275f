"""The report of `gpumodd check`: text for people, one problem a line, then the settings with their source."""

from collections.abc import Iterator

from gpumodd.config.errors import one_line
from gpumodd.config.load import Loaded
from gpumodd.config.stamp import MAIN


def report(loaded: Loaded, *, verbose: bool = False) -> str:
    """Every problem as `file:line:column: path: message`, then the settings somebody chose (`verbose`: all of them)
    with who says so (and every service's memory), then a summary; ends with a line break."""
    figures = _memory(loaded) if verbose else ()
    return "\n".join([*problems(loaded), *_settings(loaded, verbose), *figures, _summary(loaded)]) + "\n"


def problems(loaded: Loaded) -> list[str]:
    """Every problem as `file:line:column: path: message`."""
    directory = "" if _missing(loaded) else str(loaded.directory)
    return [problem.text(directory) for problem in loaded.problems]


def _settings(loaded: Loaded, verbose: bool) -> Iterator[str]:
    listed = {key: setting for key, setting in loaded.by_key.items() if verbose or setting.chosen}
    width = max((len(key) for key in listed), default=0)
    for key, setting in listed.items():
        yield one_line(f"{key:<{width}}  {_shown(setting.value)}  ({setting.source})")
    left = len(loaded.by_key) - len(listed)
    if left and not any(problem.file == MAIN or problem.file.startswith("$") for problem in loaded.errors):
        yield f"{left} {'more ' if listed else ''}settings have their default values (--verbose lists them)"


def _memory(loaded: Loaded) -> Iterator[str]:
    """What each service counts for, and who says so."""
    specs = loaded.catalog.services
    width = max(map(len, specs), default=0)
    for id, spec in specs.items():
        figure = "unknown" if spec.vram_mib is None else f"{spec.vram_mib} MiB  ({spec.vram_source})"
        yield one_line(f"services/{id:<{width}}  {figure}")


def _summary(loaded: Loaded) -> str:
    counts = [
        _counted(len(loaded.catalog.services), "service"),
        _counted(len(loaded.catalog.modes), "mode"),
        _counted(len(loaded.errors), "error"),
        _counted(len(loaded.warnings), "warning"),
    ]
    return one_line(f"{loaded.directory}: {', '.join(counts)}")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _shown(value: object) -> str:
    """A setting as YAML would have it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple() | list():
            return f"[{', '.join(map(_shown, value))}]"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _missing(loaded: Loaded) -> bool:
    return any(problem.file == str(loaded.directory) for problem in loaded.problems)
