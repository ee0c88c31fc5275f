"""A model's dimensions, layer by layer, from its header.

Owns what each metadata key means, and what an architecture builds in that no key says. What a layer computes is told
by the tensors it has. Says nothing about bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpumodd.estimate.gguf import BadModel, Header, Tensor, Value

MAX_LAYERS = 1024
MAX_EXPERTS_USED = 256

# Every nth layer looks all the way back, the others through a window: what the files of these leave unsaid. The odd
# one is the last of its group, or the first.
PERIODS = {
    "cohere2": 4,
    "cohere2moe": 4,
    "afmoe": 4,
    "exaone4": 4,
    "gemma-embedding": 6,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
    "plamo3": 8,
}
FIRST_OF_GROUP = {"modern-bert": 3, "smallthinker": 4}
BUILT_IN_WINDOW = {"llama4": 8192}
# Encoders, and models that write in any order: they look at all of a text at once and keep no cache.
NEVER_CAUSAL = frozenset(
    {
        "bert",
        "dream",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "modern-bert",
    }
    | {"neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1"}
)
# Positions enter some models by rotating queries and keys, others by other ways.
NEVER_ROTATED = frozenset(
    {
        "bert",
        "bloom",
        "gpt2",
        "jais",
        "jamba",
        "jina-bert-v2",
        "mpt",
        "nemotron_h",
        "nemotron_h_moe",
        "kimi-linear",
        "refact",
        "starcoder",
    }
)
ROTATED_IN_WINDOWS = frozenset({"afmoe", "cohere2", "cohere2moe", "exaone4", "exaone-moe"})
EVERY_FOURTH_UNROTATED = frozenset({"llama4", "smollm3"})
SHORTEST_WITH_WINDOW = {"exaone4": 64}  # its smaller sizes have none
OWN_CACHE = {"gemma3n": 20}  # layers after these use the cache of an earlier one


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, as its memory sees it."""

    heads: int
    kv_heads: int
    key: int  # the length of one head's key, as it is cached
    value: int  # 0: the key holds the value, too
    window: int = 0  # how far back it looks; 0: all the way
    cached: bool = False  # it keeps keys and values of its own
    state: int = 0  # numbers it remembers of each sequence, whatever its length: all of the state …
    convolution: int = 0  # … and of that the last inputs of its convolution
    rotary: bool = True  # queries and keys are rotated by their position
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # its tensors' shapes, by name

    def side(self, name: str, axis: int) -> int:
        """One side of a matrix that the layer must have; raises BadModel."""
        try:
            return self.parts[name][axis]
        except (KeyError, IndexError):
            raise BadModel(f"a layer has no {name} that llama.cpp could use") from None

    def rows(self, *names: str) -> int:
        """How long the result of this matrix is; the first of these names that is there."""
        return next((self.parts[name][1] for name in names if len(self.parts.get(name, ())) > 1), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """A whole model."""

    architecture: str
    embedding: int
    vocabulary: int
    trained_context: int
    layers: tuple[Layer, ...]
    drafts: int = 0  # layers at the end of the file that only speculation loads
    causal: bool = True
    experts_used: int = 0
    latent: int = 0  # the width of a compressed key, of which the value is a part
    head_value: int = 0  # a head's value before compression
    per_layer_embedding: int = 0
    alternatives: int = 0  # copies of the residual stream that are carried along
    deep_inputs: int = 0  # layers that a picture's features enter beside the first
    extras: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # tensors outside of layers

    @property
    def windowed(self) -> bool:
        return any(layer.window for layer in self.layers)


def dimensions(header: Header) -> Dimensions:
    """What the header says; raises BadModel when something needed is missing or cannot be."""
    keys = _Keys(header.metadata, header.architecture)
    blocks = keys.number("block_count", most=MAX_LAYERS)
    drafts = keys.number("nextn_predict_layers", default=0, most=MAX_LAYERS)
    if drafts >= blocks:
        raise BadModel("it has no layers")
    parts = _parts(header.tensors)
    extras = parts.get(-1, {})
    embedding = keys.number("embedding_length", most=1 << 20)
    tokens = extras.get("token_embd", ())
    spoken = tokens[1] if len(tokens) == 2 else header.length("tokenizer.ggml.tokens")
    return Dimensions(
        architecture=header.architecture,
        embedding=embedding,
        vocabulary=spoken or keys.number("vocab_size", default=0, most=1 << 28),
        trained_context=keys.number("context_length", default=0, most=1 << 40),
        layers=_layers(keys, blocks, blocks - drafts, embedding, parts),
        drafts=drafts,
        causal=keys.value("attention.causal") is not False and header.architecture not in NEVER_CAUSAL,
        experts_used=keys.number("expert_used_count", default=0, most=MAX_EXPERTS_USED),
        latent=keys.number("attention.kv_lora_rank", default=0, most=1 << 20),
        head_value=keys.number("attention.value_length_mla", default=0, most=1 << 20),
        per_layer_embedding=keys.number("embedding_length_per_layer_input", default=0, most=1 << 20),
        alternatives=4 if "altup_proj" in extras else 0,
        deep_inputs=keys.number("n_deepstack_layers", default=0, most=64),
        extras=extras,
    )


def _parts(tensors: tuple[Tensor, ...]) -> dict[int, dict[str, tuple[int, ...]]]:
    """Shapes by layer (-1: none) and name."""
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for tensor in tensors:
        words = tensor.name.split(".")
        number = int(words[1]) if len(words) > 2 and words[0] == "blk" and words[1].isdecimal() else -1
        name = ".".join(words[2 if number >= 0 else 0 :]).removesuffix(".weight")
        found.setdefault(min(number, MAX_LAYERS), {})[name] = tensor.shape
    return found


def _layers(
    keys: "_Keys", blocks: int, count: int, embedding: int, parts: Mapping[int, Mapping[str, tuple[int, ...]]]
) -> tuple[Layer, ...]:
    heads = keys.per_layer("attention.head_count", blocks, default=0)
    kv_heads = keys.per_layer("attention.head_count_kv", blocks, default=None) or heads
    most = max(heads, default=0)
    natural = embedding // most if most else 0
    windows = _windows(keys, blocks)
    own = _own_caches(keys, count)
    mla = keys.number("attention.key_length_mla", default=0, most=1 << 20) > 0
    found = []
    for i in range(count):
        suffix = "_swa" if windows[i] else ""
        key = keys.number("attention.key_length", default=natural, most=1 << 20)
        value = keys.number("attention.value_length", default=natural, most=1 << 20)
        mine = parts.get(i, {})
        convolution, state = _state(keys, embedding, mine)
        found.append(
            Layer(
                heads=heads[i],
                kv_heads=kv_heads[i],
                key=keys.number(f"attention.key_length{suffix}", default=key, most=1 << 20),
                value=0 if mla else keys.number(f"attention.value_length{suffix}", default=value, most=1 << 20),
                window=windows[i],
                cached=kv_heads[i] > 0 and _attends(mine) and i < own,
                state=state,
                convolution=convolution,
                rotary=_rotary(keys.architecture, i, windows),
                parts=mine,
            )
        )
    return tuple(found)


def _rotary(architecture: str, number: int, windows: tuple[int, ...]) -> bool:
    if architecture in ROTATED_IN_WINDOWS and any(windows):
        return windows[number] > 0
    return architecture not in NEVER_ROTATED and not (architecture in EVERY_FOURTH_UNROTATED and number % 4 == 3)


def _attends(parts: Mapping[str, object]) -> bool:
    """The layer looks at other tokens by their keys; linear attention has matrices of the same names."""
    if "ssm_conv1d_q" in parts or "time_mix_key" in parts:
        return False
    fused = "attn_qkv" in parts and not any(name.startswith("ssm_") for name in parts)
    return fused or any(name in parts for name in ("attn_k", "attn_q", "attn_kv_a_mqa"))


def _own_caches(keys: "_Keys", count: int) -> int:
    shared = keys.number("attention.shared_kv_layers", default=0, most=MAX_LAYERS)
    return OWN_CACHE.get(keys.architecture, max(0, count - shared))


def _windows(keys: "_Keys", count: int) -> tuple[int, ...]:
    """Each layer's window; 0 for those that look all the way back."""
    name = keys.architecture
    width = BUILT_IN_WINDOW.get(name, keys.number("attention.sliding_window", default=0, most=1 << 40))
    said = keys.value("attention.sliding_window_pattern")
    if isinstance(said, tuple) and len(said) >= count:
        return tuple(width if windowed else 0 for windowed in said[:count])
    period = said if isinstance(said, int) else 0
    if count < SHORTEST_WITH_WINDOW.get(name, 0):
        return (0,) * count
    if name in FIRST_OF_GROUP:
        group = period or FIRST_OF_GROUP[name]
        return tuple(width if i % group else 0 for i in range(count))
    group = period or PERIODS.get(name, 0)
    # Of other architectures llama.cpp does not use the window: the key is there because the model's authors gave it.
    return tuple(width if group and i % group < group - 1 else 0 for i in range(count))


def _state(keys: "_Keys", embedding: int, parts: Mapping[str, object]) -> tuple[int, int]:
    """What a recurrent layer remembers: of its convolution's inputs, and in all."""
    if any(name.startswith("time_mix") for name in parts):
        shift = embedding * keys.number("token_shift_count", default=2, most=16)
        return shift, shift + embedding * keys.number("wkv.head_size", most=1 << 16)
    if any(name.startswith("shortconv") for name in parts):
        taken = embedding * max(0, keys.number("shortconv.l_cache", most=1 << 16) - 1)
        return taken, taken
    if not any(name.startswith("ssm_") for name in parts):
        return 0, 0
    taps = max(0, keys.number("ssm.conv_kernel", most=1 << 16) - 1)
    if "ssm_conv1d_q" in parts:
        head = keys.number("kda.head_dim", most=1 << 16)
        inner = head * max(keys.per_layer("attention.head_count", 1, default=0))
        return 3 * taps * inner, 3 * taps * inner + head * inner
    inner = keys.number("ssm.inner_size", most=1 << 20)
    state = keys.number("ssm.state_size", most=1 << 20)
    groups = keys.number("ssm.group_count", default=0, most=1 << 16)
    taken = taps * (inner + 2 * groups * state)
    return taken, taken + state * inner


class _Keys:
    """An architecture's own keys, judged."""

    def __init__(self, metadata: Mapping[str, Value], architecture: str) -> None:
        self._metadata = metadata
        self.architecture = architecture

    def value(self, key: str) -> Value | None:
        return self._metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str, *, most: int, default: int | None = None) -> int:
        value = self.value(key)
        if value is None:
            value = default
        if value is None:
            raise BadModel(f"the metadata key {self.architecture}.{key} is missing")
        return self._judged(key, value, most)

    def per_layer(self, key: str, count: int, *, default: int | None) -> tuple[int, ...]:
        """One number for all layers, or a list of one for each; empty without the key and a default."""
        value = self.value(key)
        if value is None:
            value = default
        if value is None:
            return ()
        numbers = value if isinstance(value, tuple) else (value,) * count
        if len(numbers) < count:
            raise BadModel(f"the metadata key {self.architecture}.{key} has {len(numbers)} entries for {count} layers")
        return tuple(self._judged(key, number, 1 << 24) for number in numbers[:count])

    def _judged(self, key: str, value: object, most: int) -> int:
        if not isinstance(value, int) or not 0 <= value <= most:
            raise BadModel(f"cannot use {self.architecture}.{key} = {value!r:.60}")
        return value
