"""What recurrent layers compute, result by result: state-space models, linear attention, short convolutions, RWKV.

Owns the same as `blocks.py`, for layers that carry a state from token to token instead of looking back.
"""

from gpumodd.estimate.batch import Batch
from gpumodd.estimate.cache import F32
from gpumodd.estimate.dimensions import Layer


def recurrent(b: Batch, layer: Layer, n: int) -> int:
    """From the normed stream to what the layer adds to it."""
    if "time_mix_key" in layer.parts:
        return _time_mix(b, layer, n)
    if "shortconv.in_proj" in layer.parts:
        return _short_convolution(b, layer, n)
    if "ssm_beta" in layer.parts or "ssm_ba" in layer.parts:
        return _linear_attention(b, layer, n)
    return _state_space(b, layer, n)


def _remembered(b: Batch, numbers: int) -> int:
    """A part of the state, read for every slot."""
    return b.graph.result(numbers * b.layout.slots * F32, b.masks[False])


def _state_size(b: Batch, layer: Layer) -> int:
    return (layer.state - layer.convolution) * b.layout.slots * F32


def _joined(b: Batch, width: int, taken: int, last: int, source: int) -> int:
    """The last inputs of a convolution, and these."""
    joined = b.graph.result(b.wide(width) + taken * b.layout.slots * F32, last, source)
    b.stored(joined)
    return joined


def _state_space(b: Batch, layer: Layer, n: int) -> int:
    """Mamba, both generations."""
    inner, channels = layer.side("ssm_out", 0), layer.side("ssm_conv1d", -1)
    last = _remembered(b, layer.convolution)
    both = b.project(layer.rows("ssm_in"), n)
    convolved = b.activated(b.project(channels, _joined(b, channels, layer.convolution, last, both)))
    if "ssm_x" in layer.parts:
        mixed = b.project(layer.rows("ssm_x"), convolved)
        small = b.project(layer.side("ssm_dt", 0), mixed)
        step = b.activated(b.project(inner, small))
    else:
        mixed = convolved
        step = b.activated(b.project(layer.side("ssm_a", -1), both))
    scanned = b.graph.result(b.wide(inner) + _state_size(b, layer), convolved, mixed, step)
    # The states of slots that take no part are moved: one less than there are.
    b.stored(b.graph.result(_state_size(b, layer) * (b.layout.slots - 1) // b.layout.slots, b.masks[False]))
    b.stored(scanned)
    z = b.project(inner, both)
    out = b.project(inner, z, b.add(b.project(inner, convolved), scanned))
    return b.output(b.normed(layer, "ssm_norm", out))


def _linear_attention(b: Batch, layer: Layer, n: int) -> int:
    """Gated delta networks: keys and values go into a matrix, not into a cache."""
    if "ssm_conv1d_q" in layer.parts:
        inner = layer.side("ssm_conv1d_q", -1)
        last = _remembered(b, layer.convolution)
        joined = [_joined(b, inner, layer.convolution // 3, last, b.project(inner, n)) for _ in range(3)]
        state = _remembered(b, layer.state - layer.convolution)
        q, k, v = (b.activated(b.project(inner, x)) for x in joined)
        decay = b.activated(b.project(inner, b.project(layer.rows("ssm_f_a"), n)))
        sources = [b.graph.copy(q), b.graph.copy(k), v, decay, state]
    else:
        inner, channels = layer.side("ssm_out", 0), layer.side("ssm_conv1d", -1)
        last = _remembered(b, layer.convolution)
        whole = _joined(b, channels, layer.convolution, last, b.project(channels, n))
        state = _remembered(b, layer.state - layer.convolution)
        convolved = b.activated(b.project(channels, whole))
        q, k = (b.activated(b.project((channels - inner) // 2, convolved)) for _ in range(2))
        decay, beta = (b.activated(b.project(layer.side("ssm_a", -1), n)) for _ in range(2))
        sources = [q, k, convolved, decay, beta, state]
    attended = b.graph.result(b.wide(inner) + _state_size(b, layer), *sources)
    b.stored(attended)
    found = b.graph.copy(b.project(inner, attended))
    return b.output(b.graph.changed(found, b.activated(b.project(inner, n))))


def _short_convolution(b: Batch, layer: Layer, n: int) -> int:
    last = _remembered(b, layer.convolution)
    three = b.project(layer.rows("shortconv.in_proj"), n)
    joined = _joined(b, b.model.embedding, layer.convolution, last, b.output(three))
    return b.output(b.graph.changed(b.output(joined), three))


def _time_mix(b: Batch, layer: Layer, n: int) -> int:
    """RWKV's attention: mixtures of each token with the one before it."""
    state = _remembered(b, layer.state - layer.convolution)
    before = b.graph.changed(b.output(n), n)
    if "time_mix_lerp_fused" in layer.parts and "time_mix_a1" in layer.parts:
        return _seventh(b, layer, n, before, state)
    few = b.activated(b.project(layer.rows("time_mix_w1"), b.graph.changed(b.output(before), n)))
    mixtures = b.graph.changed(b.project(5 * b.model.embedding, few), before, n)
    k, v, r = (b.output(mixtures) for _ in range(3))
    w = b.activated(b.output(b.project(layer.rows("time_mix_decay_w1"), mixtures)))
    out = b.graph.result(b.wide(b.model.embedding) + _state_size(b, layer), k, v, r, w, state)
    b.stored(out)
    y = b.graph.copy(b.output(out))
    return b.output(b.graph.changed(y, b.activated(b.output(mixtures))))


def _seventh(b: Batch, layer: Layer, n: int, before: int, state: int) -> int:
    """The seventh generation: its state is changed by what it holds."""
    add, changed, out, width = b.add, b.graph.changed, b.output, b.model.embedding
    mixtures = changed(b.activated(b.project(6 * width, before)), n)
    r = out(mixtures)
    w = b.activated(out(b.project(layer.rows("time_mix_w1"), mixtures)))
    k = out(mixtures)
    a = b.activated(out(b.project(layer.rows("time_mix_a1"), mixtures)))
    weighed = out(k)
    key = changed(add(b.project(width, a, weighed), weighed), k)
    v = out(mixtures)
    if b.looked_up:  # every layer mixes its values with those of the first
        difference = b.project(width, b.looked_up[0], v)
        v = add(v, changed(difference, b.activated(out(b.project(layer.rows("time_mix_v1"), mixtures)))))
    else:
        b.looked_up.append(b.graph.result(b.wide(width), v, kept=True))
        v = b.looked_up[0]
    unit = out(out(k))
    size = b.wide(width) + _state_size(b, layer)
    found = b.graph.result(size, r, w, key, v, out(unit), b.project(width, unit, a), state)
    b.stored(found)
    y = b.graph.copy(out(found))
    y = add(y, changed(v, changed(b.project(width, key, r))))
    gate = out(b.project(layer.rows("time_mix_g1"), mixtures))
    return out(changed(y, gate))


def channel_mix(b: Batch, layer: Layer, n: int) -> int:
    """RWKV's feed-forward network."""
    before = b.graph.changed(b.output(n), n)
    mixed = b.graph.changed(before, n)
    gate = b.activated(b.output(mixed)) if "channel_mix_receptance" in layer.parts else None
    out = b.output(b.activated(b.project(layer.rows("channel_mix_key"), mixed)))
    return out if gate is None else b.graph.changed(gate, out)
