"""The compute buffer of llama.cpp: the graph of one micro-batch through the whole model, and what it needs at most.

Owns the frame around the layers: inputs, masks, the residual stream, the output. What a layer computes is in `blocks`
and `recurrent`, how results share memory in `graph`.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from gpumodd.estimate.batch import Batch
from gpumodd.estimate.blocks import attention, feed_forward
from gpumodd.estimate.cache import F32, Cells
from gpumodd.estimate.dimensions import Dimensions, Layer
from gpumodd.estimate.graph import Graph
from gpumodd.estimate.per_layer import alternating, spoken, stacked
from gpumodd.estimate.recurrent import channel_mix, recurrent

F16 = 2
INDEX = 8  # bytes of a place in a cache


def compute_bytes(
    model: Dimensions, layout: Cells, *, flash: bool, coarse_keys: bool = False, coarse_values: bool = False
) -> int:
    """The size of the buffer."""
    graph = Graph()
    b = Batch(
        graph=graph,
        model=model,
        layout=layout,
        tokens=layout.micro_batch,
        flash=flash,
        coarse_keys=coarse_keys,
        coarse_values=coarse_values,
    )
    x = _embedded(b)
    b.masks.update(_masks(b))
    layers = list(_telling(model.layers))
    if model.alternatives:
        x = stacked(b, x)
    given = x
    if model.deep_inputs:
        x = graph.part(b.wide(model.embedding), given)
    for number, layer in enumerate(layers[:-1]):
        x = alternating(b, layer, x) if model.alternatives else _layer(b, layer, x)
        x = b.add(x, given) if number < model.deep_inputs else x
    _last(b, layers[-1], x)
    return graph.peak()


def _embedded(b: Batch) -> int:
    """The tokens' embeddings; beside them room for those that come ready-made, which is never given back."""
    g, deep = b.graph, 1 + b.model.deep_inputs
    b.looked_up.extend(_per_layer(b))
    positions = g.entry(b.wide(1))
    places = b.output(positions) if "position_embd" in b.model.extras else None
    x, mixed = (b.output(g.entry(b.wide(1))) for _ in range(2))
    if b.model.deep_inputs:  # room for the features of a picture behind each token's own
        x, mixed = (b.project(b.model.embedding * deep, narrow) for narrow in (x, mixed))
    wide = b.wide(b.model.embedding * deep)
    b.stored(mixed, g.entry(INDEX * b.tokens), g.result(wide, g.entry(wide), kept=True))
    b.stored(positions)
    if places is not None:
        x = b.add(places, x)
    if b.looked_up:
        b.looked_up.append(x)
    return _normed_alone(b, x) if "token_embd_norm" in b.model.extras else x


def _per_layer(b: Batch) -> Iterator[int]:
    """What each layer adds of every token: looked up for all layers at once."""
    if b.model.per_layer_embedding:
        width = b.model.per_layer_embedding * len(b.model.layers)
        yield b.project(width, b.graph.entry(b.wide(1)))


def _masks(b: Batch) -> dict[bool, int]:
    """Which cells each token may look at; one mask for each kind of layer."""
    found = {}
    for windowed in (False, True):
        kind = [layer for layer in b.model.layers if bool(layer.window) is windowed and layer.heads]
        seen = b.layout.of(kind[0]) if b.model.causal and kind else b.tokens
        found[windowed] = b.graph.entry(seen * b.tokens * (F16 if b.flash else F32) if kind else F32)
        if kind and b.model.causal and not b.flash:
            # The cache lies transposed: each number of a value is written to a place of its own.
            b.stored(b.graph.entry(INDEX * b.tokens * max(layer.kv_heads * layer.value for layer in kind)))
        b.stored(found[windowed])
    return found


def _layer(b: Batch, layer: Layer, x: int) -> int:
    """From the residual stream to the residual stream."""
    parts = layer.parts
    if "layer_output_norm" in parts:  # encoders of the first kind: the norm comes after the sum
        x = _normed_alone(b, b.add(_mixed(b, layer, x, x), x))
        return _normed_alone(b, b.add(feed_forward(b, layer, x), x))
    if _parallel(layer):
        n = b.norm(x)
        found = attention(b, layer, n)
        if "attn_output.bias" in parts:
            found = b.output(found)
            return b.add(b.add(found, feed_forward(b, layer, n)), x)
        out = feed_forward(b, layer, n)
        return b.add(b.add(out, x), b.output(found))
    if _mixes(layer):
        n = b.norm(x) if "attn_norm" in parts else x
        x = b.add(_mixed(b, layer, n, x), x)
        if "time_mix_key" in parts:  # the last token is remembered for the next one's sake
            b.stored(n, x)
    return _network(b, layer, x)


def _normed_alone(b: Batch, x: int) -> int:
    """The norm of something nobody else needs, by one kernel that reads it until it is done."""
    return b.graph.copy(b.graph.copy(x), x)


def _network(b: Batch, layer: Layer, x: int) -> int:
    parts = layer.parts
    if "channel_mix_key" in parts:
        return b.add(channel_mix(b, layer, b.norm(x)), x)
    if not _has_network(layer):
        return x
    out = feed_forward(b, layer, b.norm(x))
    x = b.add(b.normed(layer, "post_ffw_norm", out), x)
    return b.add(x, spoken(b, layer, x)) if b.model.per_layer_embedding and "inp_gate" in layer.parts else x


def _mixed(b: Batch, layer: Layer, n: int, x: int) -> int:
    """What the layer takes from other tokens."""
    if not layer.state:
        return b.normed(layer, "post_attention_norm", b.output(attention(b, layer, n)))
    if not layer.cached:
        return recurrent(b, layer, n)
    found = attention(b, layer, n)
    added = recurrent(b, layer, b.norm(x))
    return b.add(b.output(found), added)


def _mixes(layer: Layer) -> bool:
    attends = any(name.startswith("attn_") and name != "attn_norm" for name in layer.parts)
    return attends or layer.state > 0


def _has_network(layer: Layer) -> bool:
    return any(name.startswith(("ffn_up", "ffn_gate_inp", "channel_mix_key")) for name in layer.parts)


def _parallel(layer: Layer) -> bool:
    """Attention and network look at the same normed stream."""
    norms = {"ffn_norm", "post_attention_norm", "attn_post_norm", "post_ffw_norm", "attn_norm_2", "attn_output_norm"}
    return _mixes(layer) and not layer.state and _has_network(layer) and not norms & layer.parts.keys()


def _last(b: Batch, layer: Layer, x: int) -> None:
    """The last layer goes on with the rows that are asked for only."""
    if not b.model.causal:
        b.norm(_layer(b, layer, x))
        return
    few = replace(b, tokens=b.layout.slots)
    if _mixes(layer):
        added = _mixed(b, layer, b.norm(x) if "attn_norm" in layer.parts else x, x)
        x = b.add(few.output(added), few.output(x))
    else:
        x = few.output(x)
    few.project(b.model.vocabulary, few.norm(_network(few, layer, x)))


def _telling(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    """The layers without those that can change nothing: what follows upon the same for the fourth time."""
    kinds: dict[object, int] = {}
    numbers = [kinds.setdefault(_kind(layer), len(kinds)) for layer in layers]
    seen: dict[tuple[int, int], int] = {}
    for place, (layer, pair) in enumerate(zip(layers, pairwise([-1, *numbers]), strict=True), 1):
        seen[pair] = seen.get(pair, 0) + 1
        if seen[pair] <= 3 or place == len(layers):
            yield layer


def _kind(layer: Layer) -> object:
    """A layer as something that can be compared and counted."""
    return replace(layer, parts={}).__repr__(), tuple(sorted(layer.parts.items()))
