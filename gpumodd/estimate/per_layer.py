"""Models that carry more than one residual stream or add to it in every layer, result by result.

Owns the per-layer embeddings of the small Gemmas, and the alternating streams of the third generation.
"""

from gpumodd.estimate.batch import Batch
from gpumodd.estimate.blocks import attention
from gpumodd.estimate.dimensions import Layer


def spoken(b: Batch, layer: Layer, x: int) -> int:
    """What this layer adds of each token's own embedding, gated by the stream."""
    gate = b.activated(b.project(layer.rows("inp_gate"), x))
    chosen = b.graph.changed(gate, _prepared(b))
    return b.norm(b.output(chosen))


def _prepared(b: Batch) -> int:
    """All layers' embeddings, brought together with the first stream when the first layer wants its own."""
    if len(b.looked_up) == 2:
        rows, first = b.looked_up
        width = b.model.per_layer_embedding * len(b.model.layers)
        projected = b.norm(b.graph.changed(b.project(width, first)))
        together = b.graph.changed(b.add(projected, b.graph.changed(rows)))
        b.looked_up.append(b.graph.result(b.wide(width), together, kept=True))
    return b.looked_up[-1]


def stacked(b: Batch, x: int) -> int:
    """The stream and its alternatives, made of it."""
    width = b.model.embedding
    others = b.project((b.model.alternatives - 1) * width, b.project((b.model.alternatives - 1) * width, x))
    return b.project(b.model.alternatives * width, x, b.graph.changed(others))


def alternating(b: Batch, layer: Layer, x: int) -> int:
    """One layer: predict all streams, compute the active one, correct all by what came out."""
    g, width, all_wide = b.graph, b.model.embedding, b.model.alternatives * b.model.embedding
    turned = b.project(all_wide, x)
    predicted = b.add(g.copy(b.project(all_wide, turned)), x)
    n = b.norm(b.output(predicted))
    out = b.add(b.norm(b.output(attention(b, layer, n))), predicted)
    side = b.add(b.norm(b.output(b.project(layer.rows("laurel_l"), n))), n)
    x = b.add(out, side)
    n = b.norm(x)
    up, gate = layer.rows("ffn_up"), layer.rows("ffn_gate")
    first, second = b.project(up, n), b.project(gate, n)
    b.stored(g.changed(g.copy(second)))  # how far its values spread: only the largest are kept
    x = b.add(b.norm(b.output(g.changed(first, b.activated(second)))), x)
    repeated = b.project(all_wide, b.project(width, x, predicted))
    corrected = b.add(g.changed(repeated), predicted)
    added = spoken(b, layer, b.output(corrected))
    rest = b.project(all_wide - width, corrected, added)
    return b.project(all_wide, corrected, rest)
