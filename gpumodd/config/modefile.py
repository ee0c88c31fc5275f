"""Modes as files: what `mode.create` and `mode.delete` do to the configuration directory.

Owns writing one small YAML file so that a crash leaves the old state or the new one. Whether the result is a good
configuration is judged by the reload that follows.
"""

import io
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from gpumodd.config.errors import reason, shown
from gpumodd.config.schema import ID
from gpumodd.ports import PortError


def create(directory: Path, id: str, *, name: str, description: str, services: Sequence[str]) -> Path:
    """Writes `modes/<id>.yaml`; raises PortError (`invalid_config`, `conflict`, `not_writable`)."""
    path = _path(directory, id)
    if id == "blank" and services:
        raise PortError("invalid_config", "cannot give the mode blank services", hint="give it another id")
    content = {"id": id, "name": name, "description": description, "services": list(services)}
    text = _text({key: value for key, value in content.items() if value or key == "services"})
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix=".mode-", dir=path.parent) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            _put(Path(file.name), path, id)
    except OSError as error:
        raise PortError("not_writable", f"cannot write {path}: {reason(error)}") from None
    return path


def delete(directory: Path, id: str) -> Path:
    """Removes `modes/<id>.yaml`; raises PortError (`invalid_config`, `not_found`, `not_writable`)."""
    path = _path(directory, id)
    try:
        path.unlink()
    except FileNotFoundError:
        raise PortError("not_found", f"cannot delete the mode {id}: there is no {path}") from None
    except OSError as error:
        raise PortError("not_writable", f"cannot remove {path}: {reason(error)}") from None
    return path


def _put(file: Path, path: Path, id: str) -> None:
    """Unlike a rename, a link never replaces a file that is there."""
    try:
        path.hardlink_to(file)
    except FileExistsError:
        hint = "delete it first, or edit the file"
        raise PortError("conflict", f"cannot create the mode {id}: {path} exists", hint=hint) from None


def _path(directory: Path, id: str) -> Path:
    if not re.fullmatch(ID.strip("^$"), id):
        message = f"cannot use {shown(id)} as a mode's id"
        raise PortError("invalid_config", message, hint="lower-case letters, digits, - and _; at most 64")
    return directory / "modes" / f"{id}.yaml"


def _text(content: dict[str, object]) -> str:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.width = 4096
    yaml.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()
