"""A model's dimensions, layer by layer, from its header.

Owns what each metadata key means and what holds when it is missing. Says nothing about bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gpumodd.estimate.gguf import BadModel, Header, Value

MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, as its memory sees it."""

    heads: int
    kv_heads: int  # 0: no attention here
    key: int  # the length of one head's key
    value: int
    feed_forward: int
    window: int = 0  # how far back it looks; 0: all the way
    cached: bool = True  # it keeps keys and values of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """A whole model."""

    architecture: str
    embedding: int
    vocabulary: int
    trained_context: int
    layers: tuple[Layer, ...]


def dimensions(header: Header) -> Dimensions:
    """What the header says; raises BadModel when something needed is missing or cannot be."""
    keys = _Keys(header.metadata, header.architecture)
    count = keys.number("block_count", most=MAX_LAYERS)
    embedding = keys.number("embedding_length", most=1 << 20)
    heads = keys.per_layer("attention.head_count", count, default=0)
    kv_heads = keys.per_layer("attention.head_count_kv", count, default=None) or heads
    wide = keys.per_layer("feed_forward_length", count, default=0)
    most = max(heads)
    natural = embedding // most if most else 0
    key = keys.number("attention.key_length", default=natural, most=1 << 20)
    value = keys.number("attention.value_length", default=natural, most=1 << 20)
    return Dimensions(
        architecture=header.architecture,
        embedding=embedding,
        vocabulary=keys.number("vocab_size", default=header.length("tokenizer.ggml.tokens"), most=1 << 28),
        trained_context=keys.number("context_length", default=0, most=1 << 40),
        layers=tuple(
            Layer(heads=heads[i], kv_heads=kv_heads[i], key=key, value=value, feed_forward=wide[i])
            for i in range(count)
        ),
    )


class _Keys:
    """An architecture's own keys, judged."""

    def __init__(self, metadata: Mapping[str, Value], architecture: str) -> None:
        self._metadata = metadata
        self._prefix = architecture

    def number(self, key: str, *, most: int, default: int | None = None) -> int:
        value = self._metadata.get(f"{self._prefix}.{key}", default)
        if value is None:
            raise BadModel(f"the metadata key {self._prefix}.{key} is missing")
        return self._judged(key, value, most)

    def per_layer(self, key: str, count: int, *, default: int | None) -> tuple[int, ...]:
        """One number for all layers, or a list of one for each; empty without the key and a default."""
        value = self._metadata.get(f"{self._prefix}.{key}", default)
        if value is None:
            return ()
        numbers = value if isinstance(value, tuple) else (value,) * count
        if len(numbers) < count:
            raise BadModel(f"the metadata key {self._prefix}.{key} has {len(numbers)} entries for {count} layers")
        return tuple(self._judged(key, number, 1 << 24) for number in numbers[:count])

    def _judged(self, key: str, value: object, most: int) -> int:
        if not isinstance(value, int) or not 0 <= value <= most:
            raise BadModel(f"cannot use {self._prefix}.{key} = {value!r:.60}")
        return value
