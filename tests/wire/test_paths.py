"""Where things are: defaults, overrides, and environments that are odd."""

import os
import pwd

import pytest

from gpumodd.wire import paths

HOME = pwd.getpwuid(os.getuid()).pw_dir


@pytest.mark.parametrize(
    ("env", "path"),
    [
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/gpumodd/gpumodd.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7/"}, "/run/user/7/gpumodd/gpumodd.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7", "GPUMODD_SOCKET": "/x/y"}, "/x/y"),
        ({"XDG_RUNTIME_DIR": "/run/user/7", "GPUMODD_SOCKET": ""}, "/run/user/7/gpumodd/gpumodd.sock"),
        ({"GPUMODD_SOCKET": "/x/../y"}, "/y"),
    ],
)
def test_socket(env, path):
    assert paths.socket_path(env) == path


def test_a_relative_socket_is_found_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.socket_path({"GPUMODD_SOCKET": "s"}) == str(tmp_path / "s")


@pytest.mark.parametrize("env", [{}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "run"}])
def test_without_a_runtime_directory(env, monkeypatch):
    made = []
    monkeypatch.setattr(os.path, "isdir", lambda path: path in made)
    with pytest.raises(paths.PathError, match="/run/user/7 does not exist") as caught:
        paths.socket_path(env, uid=7)
    assert "GPUMODD_SOCKET" in caught.value.hint
    made.append("/run/user/7")
    assert paths.socket_path(env, uid=7) == "/run/user/7/gpumodd/gpumodd.sock"


@pytest.mark.parametrize(
    ("place", "xdg", "override", "home", "tail"),
    [
        (paths.config_dir, "XDG_CONFIG_HOME", "GPUMODD_CONFIG_DIR", ".config", "gpumodd"),
        (paths.state_dir, "XDG_STATE_HOME", "GPUMODD_STATE_DIR", ".local/state", "gpumodd"),
        (paths.units_dir, "XDG_CONFIG_HOME", None, ".config", "systemd/user"),
    ],
)
def test_directories(place, xdg, override, home, tail):
    assert place({"HOME": "/home/me"}) == f"/home/me/{home}/{tail}"
    assert place({"HOME": "/home/me", xdg: "/xdg"}) == f"/xdg/{tail}"
    assert place({"HOME": "/home/me", xdg: "relative"}) == f"/home/me/{home}/{tail}"
    assert place({}) == f"{HOME.rstrip('/')}/{home}/{tail}"
    if override:
        assert place({"HOME": "/home/me", xdg: "/xdg", override: "/mine/"}) == "/mine"


def test_no_home_at_all(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(paths.PathError, match="home") as caught:
        paths.config_dir({})
    assert "HOME" in caught.value.hint


def test_nothing_is_created(tmp_path):
    env = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    for place in (paths.socket_path, paths.config_dir, paths.state_dir, paths.units_dir):
        place(env)
    assert list(tmp_path.iterdir()) == []
