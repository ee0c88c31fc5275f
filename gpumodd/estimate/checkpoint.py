"""Models as Hugging Face has them: `config.json`, and weights in safetensors files, of which only the heads are read.

Owns both formats. It reads from whatever it is given, opens nothing, and is bounded whatever the files hold.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from gpumodd.estimate.gguf import BadModel

MAX_HEAD = 100_000_000  # bytes; the format's own limit
MAX_CONFIG = 4 << 20
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's configuration, and how many bytes its weights have."""

    config: Mapping[str, Any]
    weights: int

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of the configuration that speaks of the language model."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of these keys that is there; raises BadModel."""
        for name in names:
            value = self.text.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 32:
                return value
            if value is not None:
                raise BadModel(f"cannot use {name} = {value!r:.60} in its config.json")
        if default is None:
            raise BadModel(f"its config.json says no {names[0]}")
        return default


def configuration(data: bytes) -> Mapping[str, Any]:
    """`config.json`; raises BadModel."""
    if len(data) > MAX_CONFIG:
        raise BadModel(f"its config.json is longer than {MAX_CONFIG >> 20} MiB")
    return _mapping(data, "its config.json")


def weight_bytes(read: Callable[[int], bytes]) -> int:
    """The bytes of all tensors of one safetensors file; `read` as in `gguf.parse`. Raises BadModel."""
    start = read(8)
    if len(start) < 8:
        raise BadModel("a safetensors file is cut short")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEAD:
        raise BadModel(f"cannot believe in the {length} bytes of a safetensors head: at most {MAX_HEAD} are read")
    head = read(length)
    if len(head) < length:
        raise BadModel("a safetensors file is cut short in its head")
    tensors = _mapping(head, "the head of a safetensors file")
    return sum(_size(name, said) for name, said in tensors.items() if name != "__metadata__")


def _mapping(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise BadModel(f"{what} is not JSON") from None
    if not isinstance(found, dict):
        raise BadModel(f"{what} is not a mapping")
    return found


def _size(name: str, said: Any) -> int:
    """A tensor's place in the file, which must be as large as its shape says."""
    try:
        first, last = said["data_offsets"]
        sides, bits = list(said["shape"]), BITS[said["dtype"]]
        known = all(isinstance(number, int) and 0 <= number < 1 << 48 for number in (first, last, *sides))
    except (KeyError, TypeError, ValueError):
        raise BadModel(f"cannot read the tensor {name!r:.80} of a safetensors file") from None
    if not known or len(sides) > 16 or prod(sides) * bits != 8 * (last - first):
        raise BadModel(f"the tensor {name!r:.80} of a safetensors file has not the size its shape says")
    return int(last - first)
