"""Where the tests keep what they fetch or build, so that the next run starts at once."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def cache() -> Path:
    """GPUMODD_TEST_CACHE, or `.cache` in the tree."""
    return Path(os.environ.get("GPUMODD_TEST_CACHE") or ROOT / ".cache").resolve()
