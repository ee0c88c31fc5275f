"""GGUF headers: what a real writer writes is read as it was meant, and nothing else is believed."""

import io
import struct
from pathlib import Path

import gguf as writer_library
import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given
from hypothesis import strategies as st

from gpumodd.estimate import gguf
from gpumodd.estimate.gguf import BadModel, Elided, parse
from gpumodd.estimate.quantization import BY_NUMBER
from tests.support import tiny_gguf


def header_of(data: bytes) -> gguf.Header:
    return parse(io.BytesIO(data).read)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def start(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> bytes:
    return tiny_gguf.write(tmp_path_factory.mktemp("model") / "tiny.gguf").read_bytes()


def test_a_real_file(tiny: bytes):
    header = header_of(tiny)
    assert (header.architecture, header.splits, header.quantization) == ("llama", 1, "F16")
    assert header.metadata["llama.embedding_length"] == 64
    assert header.length("tokenizer.ggml.tokens") == len(list(tiny_gguf.vocabulary()))
    assert header.header_bytes + header.data_bytes == len(tiny)


def test_the_sizes_are_those_of_the_writers_library(tmp_path: Path, tiny: bytes):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny)
    theirs = {t.name: (tuple(int(n) for n in t.shape), t.n_bytes) for t in writer_library.GGUFReader(path).tensors}
    assert {t.name: (t.shape, t.bytes) for t in header_of(tiny).tensors} == theirs


def test_every_type_has_its_true_size():
    theirs = {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()}
    ours = {number: (q.name, q.block, q.size) for number, q in BY_NUMBER.items()}
    assert ours == theirs


def test_version_2_is_read_too(tiny: bytes):
    assert header_of(tiny[:4] + struct.pack("<I", 2) + tiny[8:]).tensors == header_of(tiny).tensors


def test_long_lists_and_texts_are_counted_not_kept():
    data = start(keys=3)
    data += text("a") + struct.pack("<IIQ", 9, 8, 5000) + text("word") * 5000
    data += text("b") + struct.pack("<IIQ", 9, 4, 5000) + bytes(4 * 5000)
    data += text("c") + struct.pack("<I", 8) + text("x" * 5000)
    header = header_of(data)
    assert dict(header.metadata) == {"a": Elided(5000), "b": Elided(5000), "c": Elided(5000)}
    assert (header.length("a"), header.length("b"), header.length("nothing")) == (5000, 5000, 0)


@pytest.mark.parametrize(
    ("data", "said"),
    {
        "empty": (b"", "cut short"),
        "another format": (b"PK\3\4" + bytes(100), "not a GGUF file"),
        "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        "too old": (start(version=1), "version 1"),
        "too new": (start(version=4), "version 4"),
        "too many tensors": (start(tensors=10**9), "1000000000 tensors"),
        "too many keys": (start(keys=2**63), "metadata keys"),
        "a giant key": (start(keys=1) + struct.pack("<Q", 2**60), "bytes in a metadata key"),
        "a giant text": (start(keys=1) + text("k") + struct.pack("<IQ", 8, 2**40), "bytes in one text"),
        "a giant list": (start(keys=1) + text("k") + struct.pack("<IIQ", 9, 4, 2**40), "entries in a metadata list"),
        "a giant list of texts": (start(keys=1) + text("k") + struct.pack("<IIQ", 9, 8, 2**40), "texts"),
        "a giant text in a list": (
            start(keys=1) + text("k") + struct.pack("<IIQ", 9, 8, 1) + struct.pack("<Q", 2**62),
            "bytes in one text",
        ),
        "lists in lists": (start(keys=1) + text("k") + struct.pack("<IIQ", 9, 9, 1), "list of type 9"),
        "an unknown value": (start(keys=1) + text("k") + struct.pack("<I", 77), "value of type 77"),
        "a key twice": (start(keys=2) + 2 * (text("k") + struct.pack("<Ib", 7, 1)), "twice"),
        "an odd alignment": (start(keys=1) + text("general.alignment") + struct.pack("<II", 4, 33), "alignment 33"),
        "no alignment": (start(keys=1) + text("general.alignment") + struct.pack("<II", 4, 0), "alignment 0"),
        "five dimensions": (start(tensors=1) + tensor("t", (1, 1, 1, 1, 1)), "5 dimensions"),
        "an unknown type": (start(tensors=1) + tensor("t", (32,), kind=4), "unknown type 4"),
        "a giant tensor": (start(tensors=1) + tensor("t", (2**62, 2**62)), "shape"),
        "no tensor": (start(tensors=1) + tensor("t", (0, 4)), "shape"),
        "half a block": (start(tensors=1) + tensor("t", (100,), kind=12), "blocks of 256"),
        "a wrong offset": (start(tensors=1) + tensor("t", (32,), offset=64), "lies at 64"),
        "a tensor twice": (start(tensors=2) + tensor("t", (8,)) + tensor("t", (8,), offset=32), "twice"),
    }.values(),
)
def test_what_cannot_be_is_not_believed(data: bytes, said: str):
    with pytest.raises(BadModel, match=said):
        header_of(data)


def test_every_cut_is_noticed(tiny: bytes):
    whole = header_of(tiny).header_bytes - 31  # padding is not read
    for end in [*range(400), *range(400, whole, 997)]:
        with pytest.raises(BadModel, match="cut short"):
            header_of(tiny[:end])


@given(data=st.binary(max_size=300))
def test_noise_is_read_or_refused(data: bytes):
    try:
        assert header_of(b"GGUF" + struct.pack("<I", 3) + data).header_bytes <= len(data) + 8 + 31
    except BadModel as error:
        assert str(error)


@given(changes=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_header_is_read_or_refused(tiny: bytes, changes: list[tuple[int, int]]):
    damaged = bytearray(tiny)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        header_of(bytes(damaged))
    except BadModel as error:
        assert str(error)


def test_what_is_read_is_bounded():
    """A list of empty texts that never ends: as many as are believed, then no more."""
    read = 0

    def endless(size: int) -> bytes:
        nonlocal read
        head = start(keys=1) + text("k") + struct.pack("<IIQ", 9, 8, 2 * gguf.MAX_STRINGS) if read == 0 else b""
        read += size
        return head.ljust(size, b"\0")

    with pytest.raises(BadModel, match="texts"):
        parse(endless)
    assert read < 4 << 20


def test_a_split_model_is_one(tmp_path: Path):
    first = gguf.Header(
        metadata={"split.count": 2, "split.tensors.count": 2}, tensors=header_of(start(1) + tensor("a", (8,))).tensors
    )
    second = gguf.Header(metadata={}, tensors=header_of(start(1) + tensor("b", (8,))).tensors)
    assert first.splits == 2
    assert [t.name for t in gguf.joined([first, second]).tensors] == ["a", "b"]
    with pytest.raises(BadModel, match="hold 1 tensors, not 2"):
        gguf.joined([first])
    with pytest.raises(BadModel, match="same tensor"):
        gguf.joined([first, first])


def test_the_names_of_the_other_files():
    assert gguf.split_names("m-00001-of-00003.gguf", 3) == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for name, count in (("m.gguf", 3), ("m-00002-of-00003.gguf", 3), ("m-00001-of-00003.gguf", 2)):
        with pytest.raises(BadModel, match="the first one"):
            gguf.split_names(name, count)
