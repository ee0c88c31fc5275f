"""The report of `gpumodd check`: text for people, one problem a line, values with their source on request."""

from gpumodd.config.errors import one_line
from gpumodd.config.load import Loaded


def report(loaded: Loaded, *, verbose: bool = False) -> str:
    """Every problem as `file:line:column: path: message`, then a summary; ends with a line break."""
    directory = "" if _missing(loaded) else str(loaded.directory)
    lines = [problem.text(directory) for problem in loaded.problems]
    if verbose:
        width = max((len(key) for key in loaded.by_key), default=0)
        lines += [
            one_line(f"{key:<{width}}  {_shown(setting.value)}  ({setting.source})")
            for key, setting in loaded.by_key.items()
        ]
    lines.append(_summary(loaded))
    return "\n".join(lines) + "\n"


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
