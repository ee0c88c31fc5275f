"""Mode files: written and removed on a client's behalf. Only `modes/<id>.yaml` is ever touched."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML

FOLDER = "modes"


def write(directory: Path, *, id: str, name: str, description: str, services: Sequence[str]) -> Path:
    """Write a new mode file atomically; raises FileExistsError and other OSErrors."""
    folder = directory / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / f"{id}.yaml"
    content: dict[str, object] = {"id": id}
    content |= {key: value for key, value in (("name", name), ("description", description)) if value}
    content["services"] = list(services)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".", suffix=".new", encoding="utf-8", delete=False) as new:
        fresh = Path(new.name)
        try:
            YAML().dump(content, new)
            new.flush()
            os.fsync(new.fileno())
            os.link(fresh, target)  # unlike a rename it never replaces a file
        finally:
            fresh.unlink()
    return target


def remove(directory: Path, id: str) -> None:
    """Remove a mode's file; raises OSError."""
    (directory / FOLDER / f"{id}.yaml").unlink()
