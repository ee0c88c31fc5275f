"""Mode files: written and removed on a client's behalf. Only `modes/<id>.yaml` is ever touched.

Owns that a crash leaves the old state or the new one. Whether the result is a good configuration is judged by the
reload that follows.
"""

import errno
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpumodd.config.document import UNUSABLE
from gpumodd.config.errors import shown
from gpumodd.config.schema import ID

FOLDER = "modes"


def write(directory: Path, *, id: str, name: str, description: str, services: Sequence[str]) -> Path:
    """Write a new mode file; raises OSError, of which FileExistsError means that the mode has a file already."""
    target = _file(directory, id)
    if UNUSABLE.search(name + description):
        raise OSError(errno.EINVAL, "a name or description holds a character that text cannot have", str(target))
    content = {"id": id, "name": name, "description": description, "services": list(services)}
    text = _text({key: value for key, value in content.items() if value or key == "services"})
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=".mode-", encoding="utf-8") as new:
        new.write(text)
        new.flush()
        os.fsync(new.fileno())
        target.hardlink_to(new.name)  # unlike a rename it never replaces a file
    return target


def remove(directory: Path, id: str) -> None:
    """Remove a mode's file; raises OSError, of which FileNotFoundError means that there is none."""
    _file(directory, id).unlink()


def _file(directory: Path, id: str) -> Path:
    """The file of this mode. An id that is none could name any file there is."""
    if not re.fullmatch(ID.strip("^$"), id):
        message = f"{shown(id)} is no id: lower-case letters, digits, - and _ are, at most 64"
        raise OSError(errno.EINVAL, message, str(directory / FOLDER))
    return directory / FOLDER / f"{id}.yaml"


def _text(content: Mapping[str, object]) -> str:
    """YAML with every text in double quotes: nothing in it means anything, and every reader takes it alike."""
    return "".join(f"{key}: {_flow(value)}\n" for key, value in content.items())


def _flow(value: object) -> str:
    # JSON is YAML, but for line ends that YAML knows and JSON does not, and signs that YAML wants escaped.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False))
