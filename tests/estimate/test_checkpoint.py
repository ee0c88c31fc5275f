"""Hugging Face checkpoints: what their heads say, and what cannot be believed."""

import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumodd.estimate import checkpoint
from gpumodd.estimate.checkpoint import Checkpoint, configuration, weight_bytes
from gpumodd.estimate.gguf import BadModel
from gpumodd.estimate.vllm import MIB, OVERHEAD, Need, needed, per_token

LLAMA = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 131072,
}


def shard(head: object) -> bytes:
    said = json.dumps(head).encode()
    return struct.pack("<Q", len(said)) + said


def tensor(dtype: str, shape: list[int], first: int, last: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def read(data: bytes) -> int:
    return weight_bytes(io.BytesIO(data).read)


def test_weights_are_counted():
    head = {
        "__metadata__": {"format": "pt"},
        "a": tensor("BF16", [4096, 4096], 0, 1 << 25),
        "b": tensor("F32", [7], 1 << 25, (1 << 25) + 28),
        "c": tensor("F4", [3, 2], (1 << 25) + 28, (1 << 25) + 31),
    }
    assert read(shard(head)) == (1 << 25) + 31


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut short"),
        (shard({"a": tensor("F16", [2], 0, 4)})[:-3], "cut short in its head"),
        (struct.pack("<Q", 1 << 60), "cannot believe"),
        (shard([1]), "not a mapping"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "not JSON"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "not JSON"),
        (shard({"a": 7}), "'a'"),
        (shard({"a": tensor("F17", [2], 0, 4)}), "'a'"),
        (shard({"a": tensor("F16", [2], 0, 5)}), "its shape"),
        (shard({"a": tensor("F16", [1 << 60], 0, 5)}), "its shape"),
        (shard({"a": tensor("F16", [-2, -1], 0, 4)}), "its shape"),
    ],
)
def test_what_cannot_be_is_refused(data: bytes, said: str):
    with pytest.raises(BadModel, match=said):
        read(data)


@given(data=st.binary(max_size=200))
def test_noise_is_read_or_refused(data: bytes):
    try:
        assert read(data) >= 0
    except BadModel as error:
        assert str(error)


def test_a_long_configuration_is_not_read():
    with pytest.raises(BadModel, match="longer than"):
        configuration(b" " * (checkpoint.MAX_CONFIG + 1))


def test_keys_and_values_of_a_token():
    assert per_token(Checkpoint(config=LLAMA, weights=0)) == 32 * 2 * 8 * 128
    assert per_token(Checkpoint(config={"text_config": LLAMA}, weights=0)) == 32 * 2 * 8 * 128
    compressed = {**LLAMA, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert per_token(Checkpoint(config=compressed, weights=0)) == 32 * 576


def test_what_a_server_needs():
    model = Checkpoint(config=LLAMA, weights=16 << 30)
    assert needed(model, Need(context=8192)) == (16 << 30) + (1 << 30) + OVERHEAD
    assert needed(model, Need(context=8192, cache_type="fp8")) == (16 << 30) + (1 << 29) + OVERHEAD
    assert needed(model, Need()) == needed(model, Need(context=131072))
    assert needed(model, Need(context=8192, cache_bytes=MIB, devices=2)) == (16 << 30) + 2 * MIB + 2 * OVERHEAD


@pytest.mark.parametrize("wrong", [{"num_hidden_layers": "many"}, {"hidden_size": -1}, {"num_attention_heads": None}])
def test_a_configuration_that_says_too_little(wrong: dict[str, object]):
    config = {key: value for key, value in {**LLAMA, **wrong}.items() if value is not None}
    with pytest.raises(BadModel):
        needed(Checkpoint(config=config, weights=0), Need(context=1))
