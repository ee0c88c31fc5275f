"""What a server remembers of its sequences: keys and values of attention, and the states of recurrent layers.

Owns how many cells there are, in which streams, and what one takes.
"""

from dataclasses import dataclass

from gpumodd.estimate.dimensions import Dimensions, Layer
from gpumodd.estimate.quantization import Quantization

STEP = 256  # a cache has a multiple of so many cells
UNSAID_SLOTS = 4  # a server that was told nothing has four slots that share one cache
F32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """How a context is laid out: so many streams, each with so many cells."""

    slots: int
    streams: int
    full: int  # cells of one stream in layers that look all the way back
    micro_batch: int
    whole_windows: bool = False

    def of(self, layer: Layer) -> int:
        """The cells of one stream in this layer."""
        if not layer.window or self.whole_windows:
            return self.full
        sharing = self.slots if self.streams == 1 else 1
        return padded(min(self.full, layer.window * sharing + self.micro_batch))


def padded(cells: int) -> int:
    return -(-cells // STEP) * STEP


def cells(
    context: int, micro_batch: int, *, slots: int | None, unified: bool | None, whole_windows: bool = False
) -> Cells:
    """The layout of a context of so many tokens, of all slots together."""
    count = slots or UNSAID_SLOTS
    together = (slots is None) if unified is None else unified
    streams = 1 if together else count
    full = padded(max(1, padded(context) // streams))
    micro_batch = min(micro_batch, full * streams)
    return Cells(slots=count, streams=streams, full=full, micro_batch=micro_batch, whole_windows=whole_windows)


def cache_bytes(
    model: Dimensions, layout: Cells, key_type: Quantization, value_type: Quantization, *, flash: bool
) -> list[int]:
    """The bytes of each layer's keys and values."""
    if not model.causal:
        return [0] * len(model.layers)
    widest = max((layer.kv_heads * layer.value for layer in model.layers if layer.cached), default=0)
    recurrent = any(layer.state for layer in model.layers)
    found = []
    for layer in model.layers:
        many = layout.of(layer) * layout.streams
        # Without flash attention values lie transposed, and every layer's are as wide as the widest.
        values = layer.kv_heads * layer.value if flash or not layer.value else widest
        size = key_type.bytes(layer.kv_heads * layer.key * many) + value_type.bytes(values * many)
        found.append(size if layer.cached or not (layer.kv_heads or recurrent or flash) else 0)
    return found


def state_bytes(model: Dimensions, layout: Cells) -> list[int]:
    """The bytes of each layer's recurrent state: one row for every slot, in full precision."""
    return [layer.state * layout.slots * F32 for layer in model.layers]
