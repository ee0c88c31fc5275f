"""Where things are: the socket, the configuration, the state, the generated units.

Computes paths from an environment and creates nothing. Strings and os.path on purpose: pathlib alone would be
a tenth of the client's start-up.
"""

import os
from collections.abc import Mapping

SOCKET_PATH_LIMIT = 107  # sun_path of struct sockaddr_un, less its final NUL


class PathError(ValueError):
    """A place that cannot be determined; `hint` names the variable that would set it."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def runtime_dir(env: Mapping[str, str] | None = None, *, uid: int | None = None) -> str:
    """$XDG_RUNTIME_DIR/gpumodd, the socket's directory."""
    env = os.environ if env is None else env
    uid = os.getuid() if uid is None else uid
    runtime = _absolute(env, "XDG_RUNTIME_DIR")
    if not runtime:
        runtime = f"/run/user/{uid}"
        if not os.path.isdir(runtime):  # noqa: PTH112
            raise PathError(
                f"cannot tell where the socket is: XDG_RUNTIME_DIR is not set and {runtime} does not exist",
                hint="set GPUMODD_SOCKET to the socket's path, or log in in a way that sets XDG_RUNTIME_DIR",
            )
    return f"{runtime}/gpumodd"


def socket_path(env: Mapping[str, str] | None = None, *, uid: int | None = None) -> str:
    """$GPUMODD_SOCKET, else gpumodd.sock in the runtime directory."""
    env = os.environ if env is None else env
    chosen = env.get("GPUMODD_SOCKET", "")
    if chosen:
        return os.path.abspath(chosen)  # noqa: PTH100
    return f"{runtime_dir(env, uid=uid)}/gpumodd.sock"


def config_dir(env: Mapping[str, str] | None = None) -> str:
    """$GPUMODD_CONFIG_DIR, else $XDG_CONFIG_HOME/gpumodd."""
    return _place(env, "GPUMODD_CONFIG_DIR", "XDG_CONFIG_HOME", ".config", "gpumodd")


def state_dir(env: Mapping[str, str] | None = None) -> str:
    """$GPUMODD_STATE_DIR, else $XDG_STATE_HOME/gpumodd."""
    return _place(env, "GPUMODD_STATE_DIR", "XDG_STATE_HOME", ".local/state", "gpumodd")


def units_dir(env: Mapping[str, str] | None = None) -> str:
    """$XDG_CONFIG_HOME/systemd/user, where generated units go."""
    return _place(env, None, "XDG_CONFIG_HOME", ".config", "systemd/user")


def _place(env: Mapping[str, str] | None, override: str | None, xdg: str, fallback: str, tail: str) -> str:
    env = os.environ if env is None else env
    chosen = env.get(override, "") if override else ""
    if chosen:
        return os.path.abspath(chosen)  # noqa: PTH100
    parent = _absolute(env, xdg) or f"{_home(env, xdg)}/{fallback}"
    return f"{parent}/{tail}"


def _home(env: Mapping[str, str], xdg: str) -> str:
    home = _absolute(env, "HOME") or os.path.expanduser(f"~{_user()}")  # noqa: PTH111
    if not home.startswith("/"):
        raise PathError(f"cannot find the home directory: neither {xdg} nor HOME is set", hint=f"set HOME or {xdg}")
    return home


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def _absolute(env: Mapping[str, str], name: str) -> str:
    """The value without a trailing slash; relative ones are ignored, as the XDG specification says."""
    value = env.get(name, "")
    return value.rstrip("/") if value.startswith("/") else ""
