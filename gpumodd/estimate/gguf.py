"""GGUF headers: what a model file says of itself before its weights begin.

Owns the format, versions 2 and 3. It reads from whatever it is given, opens nothing, never reaches the weights, and
is bounded in bytes, counts and time whatever the file holds. Long lists, such as a vocabulary, are counted, not kept.
"""

import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from gpumodd.estimate.quantization import BY_NUMBER, Quantization

MAGIC = b"GGUF"
MAX_HEADER = 256 << 20  # bytes; the largest vocabularies need about 30 MiB
MAX_KEYS = 65_536
MAX_TENSORS = 200_000
MAX_STRINGS = 4_000_000  # in all lists together
MAX_NAME = 1024
MAX_TEXT = 32 << 20  # a chat template can be long
KEPT_TEXT = 4096
KEPT_LIST = 4096
MAX_SPLITS = 1000

Scalar = int | float | bool | str


class BadModel(ValueError):
    """A model that cannot be understood; says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Elided:
    """A text or a list that was too long to keep: how long it was."""

    length: int


Value = Scalar | tuple[Scalar, ...] | Elided


@dataclass(frozen=True, slots=True)
class Tensor:
    """One matrix of weights; `shape[0]` is the length of a row."""

    name: str
    shape: tuple[int, ...]
    quantization: Quantization

    @property
    def bytes(self) -> int:
        return self.quantization.bytes(prod(self.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Everything a file says before its weights; of a split model, of all its files together."""

    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    data_bytes: int = 0  # how long the weights of this file are
    header_bytes: int = 0  # where they begin

    @property
    def architecture(self) -> str:
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise BadModel("it names no architecture")
        return name

    @property
    def splits(self) -> int:
        """How many files the model is in."""
        count = self.metadata.get("split.count", 0)
        return count if isinstance(count, int) and count > 1 else 1

    @property
    def quantization(self) -> str:
        """The type that most of the weights have."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.quantization.name] += tensor.bytes
        return max(sizes, key=lambda name: (sizes[name], name)) if sizes else ""

    def length(self, key: str) -> int:
        """How many entries a list has, kept or not; 0 without it."""
        value = self.metadata.get(key)
        return value.length if isinstance(value, Elided) else len(value) if isinstance(value, tuple) else 0


def parse(read: Callable[[int], bytes]) -> Header:
    """The header that `read` yields: as many bytes as asked for, fewer at the end only. Raises BadModel."""
    cursor = _Cursor(read)
    if cursor.take(4) != MAGIC:
        raise BadModel("it is not a GGUF file")
    version = cursor.number("I")
    if version & 0xFFFF == 0:
        raise BadModel("it is written for big-endian machines")
    if version not in (2, 3):
        raise BadModel(f"cannot read GGUF version {version}: versions 2 and 3 are known")
    tensors = _bounded(cursor.number("Q"), MAX_TENSORS, "tensors")
    keys = _bounded(cursor.number("Q"), MAX_KEYS, "metadata keys")
    metadata = _metadata(cursor, keys)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise BadModel(f"cannot use the alignment {alignment}")
    table, data_bytes = _table(cursor, tensors, alignment)
    start = -(-cursor.position // alignment) * alignment
    return Header(metadata=MappingProxyType(metadata), tensors=table, data_bytes=data_bytes, header_bytes=start)


def joined(headers: Iterable[Header]) -> Header:
    """A split model as one: the first file's metadata, all files' tensors. Raises BadModel."""
    parts = list(headers)
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    said = parts[0].metadata.get("split.tensors.count")
    if isinstance(said, int) and said != len(tensors):
        raise BadModel(f"its {len(parts)} files hold {len(tensors)} tensors, not {said}")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise BadModel("two of its files hold the same tensor")
    return Header(metadata=parts[0].metadata, tensors=tensors, data_bytes=sum(part.data_bytes for part in parts))


def split_names(name: str, count: int) -> list[str]:
    """The names of a split model's files, from the name of its first one. Raises BadModel."""
    found = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", name, re.DOTALL)
    if count > MAX_SPLITS or found is None or (int(found[2]), int(found[3])) != (1, count):
        raise BadModel(f"it is split into {count} files, and its name is not that of the first one")
    return [f"{found[1]}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


class _Cursor:
    """Reads forward in large pieces; counts against the budget."""

    PIECE = 1 << 20

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer = b""
        self._at = 0
        self._before = 0  # bytes of pieces that are gone

    @property
    def position(self) -> int:
        return self._before + self._at

    def take(self, size: int) -> bytes:
        self._need(size)
        self._at += size
        return self._buffer[self._at - size : self._at]

    def number(self, form: str) -> int:
        value = self.unpack("<" + form)[0]
        assert isinstance(value, int)
        return value

    def unpack(self, form: str) -> tuple[Scalar, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def skip(self, size: int) -> None:
        if self.position + size > MAX_HEADER:
            raise BadModel(f"its header is longer than {MAX_HEADER >> 20} MiB")
        while size > 0:
            step = min(size, self.PIECE)
            self.take(step)
            size -= step

    def text(self, limit: int, what: str) -> str | Elided:
        size = _bounded(self.number("Q"), limit, f"bytes in {what}")
        if size > KEPT_TEXT:
            self.skip(size)
            return Elided(size)
        return self.take(size).decode("utf-8", "replace")

    def skip_strings(self, count: int) -> None:
        """The inner loop of a vocabulary: half a million turns in a large one."""
        length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if self._at + 8 > len(self._buffer):
                self._need(8)
            (size,) = length(self._buffer, self._at)
            self._at += 8 + size
            if self._at > len(self._buffer):
                self._at -= size
                self.skip(_bounded(size, MAX_TEXT, "bytes in one text"))

    def _need(self, size: int) -> None:
        if self._at + size <= len(self._buffer):
            return
        if self.position + size > MAX_HEADER:
            raise BadModel(f"its header is longer than {MAX_HEADER >> 20} MiB")
        left = self._buffer[self._at :]
        self._before += self._at
        self._buffer, self._at = left + self._read(max(self.PIECE, size - len(left))), 0
        if len(self._buffer) < size:
            raise BadModel(f"it is cut short: it ends after {self._before + len(self._buffer)} bytes, in its header")


def _bounded(number: int, limit: int, what: str) -> int:
    if number > limit:
        raise BadModel(f"cannot believe in {number} {what}: at most {limit} are read")
    return number


_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9


def _metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    strings = MAX_STRINGS
    for _ in range(count):
        key = _name(cursor, "a metadata key")
        if key in found:
            raise BadModel(f"the metadata key {key!r} is there twice")
        kind = cursor.number("I")
        if kind == _LIST:
            found[key], used = _list(cursor, strings)
            strings -= used
        else:
            found[key] = _scalar(cursor, kind)
    return found


def _scalar(cursor: _Cursor, kind: int) -> Scalar | Elided:
    if kind == _STRING:
        return cursor.text(MAX_TEXT, "one text")
    if kind not in _FORMS:
        raise BadModel(f"cannot read a metadata value of type {kind}")
    return cursor.unpack("<" + _FORMS[kind])[0]


def _list(cursor: _Cursor, strings: int) -> tuple[Value, int]:
    """A list, and how many texts it held."""
    kind = cursor.number("I")
    count = cursor.number("Q")
    if kind == _STRING:
        cursor.skip_strings(_bounded(count, strings, "texts in its metadata"))
        return Elided(count), count
    if kind not in _FORMS:
        raise BadModel(f"cannot read a metadata list of type {kind}")
    size = struct.calcsize("<" + _FORMS[kind])
    _bounded(count, MAX_HEADER // size, "entries in a metadata list")
    if count > KEPT_LIST:
        cursor.skip(count * size)
        return Elided(count), 0
    return cursor.unpack(f"<{count}{_FORMS[kind]}"), 0


def _name(cursor: _Cursor, what: str) -> str:
    name = cursor.text(MAX_NAME, what)
    assert isinstance(name, str)  # MAX_NAME is below KEPT_TEXT
    return name


def _table(cursor: _Cursor, count: int, alignment: int) -> tuple[tuple[Tensor, ...], int]:
    """The tensors, and the length of their data. Offsets must be what llama.cpp takes: one after the other."""
    found: dict[str, Tensor] = {}
    end = 0
    for _ in range(count):
        name = _name(cursor, "a tensor's name")
        if name in found:
            raise BadModel(f"the tensor {name!r} is there twice")
        dimensions = _bounded(cursor.number("I"), 4, f"dimensions of {name!r}")
        shape = tuple(int(size) for size in cursor.unpack(f"<{dimensions}Q"))
        if (kind := cursor.number("I")) not in BY_NUMBER:
            raise BadModel(f"the tensor {name!r} has the unknown type {kind}")
        tensor = Tensor(name, shape, BY_NUMBER[kind])
        _judge(tensor)
        if (offset := cursor.number("Q")) != end:
            raise BadModel(f"the tensor {name!r} lies at {offset}, not at {end}")
        found[name] = tensor
        end += -(-tensor.bytes // alignment) * alignment
    return tuple(found.values()), end


def _judge(tensor: Tensor) -> None:
    if prod(tensor.shape) >= 1 << 50 or 0 in tensor.shape:
        raise BadModel(f"cannot believe in the shape {list(tensor.shape)} of the tensor {tensor.name!r}")
    if tensor.shape and tensor.shape[0] % tensor.quantization.block:
        kind = tensor.quantization
        raise BadModel(
            f"rows of {tensor.shape[0]} do not fill {kind.name}'s blocks of {kind.block} in the tensor {tensor.name!r}"
        )
