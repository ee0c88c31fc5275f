"""Pieces of command lines that several drivers share: flags, paths, addresses.

Pure functions over text. Nothing here looks at the disk; `~` is the one thing taken from the environment.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from gpumodd.core.specs import ServiceSpec
from gpumodd.drivers.api import DriverError, ProbeSpec

# A server that listens everywhere is asked on loopback: connecting to 0.0.0.0 works by accident only.
_ANSWERS_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def given(args: Iterable[str], *flags: str) -> bool:
    """Did the user already pass one of these flags, as `--flag value` or `--flag=value`?

    vLLM also takes `--max_model_len` for `--max-model-len`, so the two spellings count as one.
    """
    for arg in args:
        name = arg.partition("=")[0]
        if name in flags or (name.startswith("--") and "--" + name[2:].replace("_", "-") in flags):
            return True
    return False


def value(args: tuple[str, ...], *flags: str) -> str | None:
    """The last word that was given for one of these flags."""
    found = None
    for word, following in zip(args, (*args[1:], None), strict=False):
        if given((word,), *flags):
            _, equals, after = word.partition("=")
            found = after if equals else following
    return found


def address(spec: ServiceSpec) -> tuple[str, ...]:
    """`--host H --port P`; without a port the program's own default port applies."""
    port = () if spec.port is None else ("--port", str(spec.port))
    return ("--host", spec.host, *port)


def check_address(args: Iterable[str], spec: ServiceSpec) -> list[DriverError]:
    """A port in `args` would win over the key `port`, and the daemon would ask the wrong one for ever."""
    if spec.port is not None and given(args, "--port"):
        return [DriverError("cannot take --port from args: the key port sets it", field="args", hint="remove it")]
    return []


def check_model(spec: ServiceSpec, what: str) -> list[DriverError]:
    """Every driver with a model needs one, and it must not read as a flag."""
    if not spec.model:
        return [DriverError(f"driver {spec.driver} needs a model", field="model", hint=what)]
    if spec.model.startswith("-"):
        message = f"cannot use model {spec.model!r}: it would be read as a flag"
        return [DriverError(message, field="model", hint=what)]
    return []


def absolute(path: str, directory: str | None = None) -> str:
    """`~` expanded; a relative path starts at `directory` (`options.cwd`), else at the home directory."""
    expanded = _expanded(path)
    if expanded.is_absolute():
        return str(expanded)
    start = Path.home() if directory is None else _expanded(directory)
    return str(start / expanded)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~name` of nobody, or no home directory at all
        raise DriverError(f"cannot find the home directory in {path!r}", hint="write the whole path") from None


def directory(cwd: str | None) -> str | None:
    return None if cwd is None else absolute(cwd)


def check_directory(cwd: str | None) -> list[DriverError]:
    """systemd has no way to quote these in WorkingDirectory=."""
    if cwd is None:
        return []
    hint = "give an absolute path, or one that starts with ~"
    if not cwd.startswith(("/", "~")):
        return [DriverError(f"cannot use cwd {cwd!r}: it is relative", field="options.cwd", hint=hint)]
    if not cwd.isprintable() or cwd != cwd.strip() or cwd.endswith("\\"):
        message = f"cannot use cwd {cwd!r}: control characters, outer spaces and a last backslash cannot be written"
        return [DriverError(message, field="options.cwd", hint=hint)]
    return []


def http_probe(spec: ServiceSpec) -> ProbeSpec | None:
    """GET on the service's own port; None without one, and ready then means active."""
    if spec.port is None:
        return None
    host = _ANSWERS_AT.get(spec.host, spec.host)
    return ProbeSpec(host=host, port=spec.port, path=spec.health.path, timeout_s=spec.health.timeout_s)


def cuda_devices(uuids: tuple[str, ...]) -> Mapping[str, str]:
    """CUDA's own selection, by UUID: an index would mean another card once one is gone."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}
