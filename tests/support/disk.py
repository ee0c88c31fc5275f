"""A disk of a test's own: mounted, filled and made read-only where nobody else sees it."""

import subprocess
import sys
from pathlib import Path

from tests.support.fixtures import require_real

ALONE = ("unshare", "--mount", "--propagation", "private", "--")


def with_its_own_mounts(script: str, place: Path) -> "subprocess.CompletedProcess[str]":
    """Run a Python script, with `place` as its argument, in a mount namespace of its own; skips where there is none."""
    mount = [*ALONE, "mount", "-t", "tmpfs", "tmpfs", str(place)]
    tried = subprocess.run(mount, capture_output=True, check=False)
    require_real("" if tried.returncode == 0 else f"no mount namespace: {tried.stderr.decode().strip()}")
    command = [*ALONE, sys.executable, "-c", script, str(place)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
