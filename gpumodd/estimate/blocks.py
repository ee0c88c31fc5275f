"""What a layer computes, result by result: attention, its compressed form, feed-forward networks, experts.

Owns the order and the sizes of the results, because these decide how large a compute buffer is. Each function takes
the normed residual stream. Recurrent layers are in `recurrent.py`.
"""

from gpumodd.estimate.batch import Batch
from gpumodd.estimate.cache import F32
from gpumodd.estimate.dimensions import Layer


def attention(b: Batch, layer: Layer, n: int) -> int:
    """What attention finds, before the output matrix."""
    if "attn_kv_a_mqa" in layer.parts and not layer.value:
        return _compressed(b, layer, n)
    q, k, v, gate = _projected(b, layer, n)
    out = _looked_up(b, layer, q, k, v)
    if b.coarse_values:
        out = b.graph.copy(out)
    return out if gate is None else b.graph.changed(out, b.activated(b.project(layer.heads * layer.value, gate)))


def _projected(b: Batch, layer: Layer, n: int) -> tuple[int, int | None, int | None, int | None]:
    """Queries, keys, values, and what gates the result; no keys where an earlier layer's cache is used."""
    parts, queries = layer.parts, layer.heads * layer.key
    if "attn_qkv" in parts and "attn_k" not in parts:
        fused = b.project(layer.side("attn_qkv", 1), n)
        if not layer.rotary:
            return _coarse(b, fused, queries), fused, fused, None
        return _coarse(b, b.project(queries, fused), queries), b.project(layer.kv_heads * layer.key, fused), fused, None
    q, gate = b.project(layer.rows("attn_q") or queries, n), None
    if layer.rows("attn_q") >= 2 * queries > 0:  # the other half gates what comes out
        gate, q = q, b.project(queries, q)
    elif "attn_gate" in parts and not layer.state:
        gate = n
    q = _coarse(b, b.positioned(layer, b.normed(layer, "attn_q_norm", q)), queries)
    if not layer.cached and b.model.causal:
        return q, None, None, gate
    if b.model.windowed or not b.model.causal:
        k, v = _keys(b, layer, n), _values(b, layer, n)
    else:
        v, k = _values(b, layer, n), _keys(b, layer, n)
    return q, k, v, gate


def _keys(b: Batch, layer: Layer, n: int) -> int:
    width = layer.kv_heads * layer.key
    return _coarse(b, b.positioned(layer, b.normed(layer, "attn_k_norm", b.project(width, n))), width)


def _values(b: Batch, layer: Layer, n: int) -> int:
    width = layer.kv_heads * layer.value
    v = b.project(width, n)
    return b.project(width, v) if b.coarse_values else v


def _coarse(b: Batch, x: int, width: int) -> int:
    return b.project(width, x) if b.coarse_keys else x


def _looked_up(b: Batch, layer: Layer, q: int, k: int | None, v: int | None) -> int:
    width = layer.heads * (layer.value or layer.key)
    sources = [q, b.masks[bool(layer.window)]]
    if k is not None and v is not None:
        if b.model.causal:
            b.stored(k)
            b.stored(v)
        else:  # without a cache keys and values are packed first
            sources += [_packed(b, layer, x) for x in (k, v)]
    if b.flash:
        return b.project(width, *sources)
    return b.project(width, b.project(width, _scores(b, layer, *sources)))


def _packed(b: Batch, layer: Layer, x: int) -> int:
    """In half precision, which flash attention wants."""
    width = layer.kv_heads * layer.key
    return b.graph.result(b.wide(width) // 2, b.project(width, x)) if b.flash else b.project(width, x)


def _scores(b: Batch, layer: Layer, *sources: int) -> int:
    """Without flash attention every query's weight for every cell is there at once."""
    seen = b.layout.of(layer) if b.model.causal else b.tokens
    return b.activated(b.graph.result(seen * b.tokens * layer.heads * F32, *sources))


def _compressed(b: Batch, layer: Layer, n: int) -> int:
    """Attention over compressed keys: each query is brought into their space, each result out of it."""
    model = b.model
    if "attn_q_a" in layer.parts:
        n_q = b.norm(b.project(layer.rows("attn_q_a"), n))
        q = b.project(layer.rows("attn_q_b"), n_q)
    else:
        q = b.project(layer.rows("attn_q"), n)
    absorbed = b.project(layer.heads * model.latent, q)
    turned = b.project(layer.heads * (layer.key - model.latent), q)
    q = b.project(layer.heads * layer.key, absorbed, turned)
    joint = b.project(layer.key, n)
    b.stored(b.project(layer.key, b.norm(b.project(model.latent, joint)), joint))
    sources = (q, b.masks[bool(layer.window)])
    found = b.project(layer.heads * model.latent, *(sources if b.flash else (_scores(b, layer, *sources),)))
    return b.project(layer.heads * model.head_value, b.project(layer.heads * model.head_value, found))


def feed_forward(b: Batch, layer: Layer, n: int) -> int:
    """From the normed stream to what the network adds to it; dense, of experts, or both."""
    if "ffn_gate_inp" not in layer.parts:
        return dense(b, layer, n)
    out = experts(b, layer, n)
    return b.add(out, dense(b, layer, n, "_shexp")) if "ffn_up_shexp" in layer.parts else out


def dense(b: Batch, layer: Layer, n: int, suffix: str = "") -> int:
    up, gate = layer.rows(f"ffn_up{suffix}"), layer.rows(f"ffn_gate{suffix}")
    inner = layer.side(f"ffn_down{suffix}", 0)
    if gate:
        first = b.project(gate, n)
        middle = b.project(inner, first, b.project(up, n))
    elif up >= 2 * inner > 0:  # both halves in one matrix
        middle = b.project(inner, b.project(up, n))
    else:
        middle = b.activated(b.project(up, n))
    return b.output(middle)


def experts(b: Batch, layer: Layer, n: int) -> int:
    """Every token goes through those experts that its router chose; their results are weighed and summed."""
    used, count = max(1, b.model.experts_used), layer.rows("ffn_gate_inp")
    inner, width = layer.side("ffn_down_exps", 0), layer.side("ffn_down_exps", 1)
    likely = b.activated(b.project(count, n))
    chosen = b.project(count, b.graph.copy(likely) if "exp_probs_b.bias" in layer.parts else likely)
    weights = b.activated(b.project(used, likely, chosen))
    if "ffn_gate_up_exps" in layer.parts:
        middle = b.project(used * inner, b.project(used * layer.rows("ffn_gate_up_exps"), n, chosen))
    elif "ffn_gate_exps" in layer.parts:
        first = b.project(used * inner, n, chosen)
        middle = b.project(used * inner, first, b.project(used * inner, n, chosen))
    else:
        middle = b.activated(b.project(used * inner, n, chosen))
    each = b.graph.changed(b.project(used * width, middle, chosen), weights)
    if used == 1:
        return each
    total = b.project(width, each, each)
    for _ in range(used - 2):
        total = b.add(total, each)
    return total
