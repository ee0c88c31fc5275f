"""Where a model's weights go: to the device, or into host memory.

Owns which tensors are loaded at all and what stays behind. Sizes are those of the tensor table.
"""

import re
from dataclasses import dataclass

from gpumodd.estimate.dimensions import Dimensions
from gpumodd.estimate.gguf import Header, Tensor

# Tables in which a token's row is looked up: that is done on the host, whatever is offloaded.
LOOKED_UP = frozenset(
    {"token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"}
)
EXPERTS = re.compile(r"ffn_(up|down|gate|gate_up)_(ch)?exps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Bytes by place. A table that is tied to the output is on the device, and on the host once more."""

    loaded: int
    layers: tuple[int, ...]  # of each layer
    on_device: int


def weights(header: Header, model: Dimensions, *, offloaded: int | None, experts_on_host: int) -> Weights:
    """The weights, with so many layers offloaded from the end (None: all), and so many layers' experts kept back."""
    count = len(model.layers)
    first = 0 if offloaded is None else max(0, count + 1 - offloaded)
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    loaded = on_device = 0
    layers = [0] * count
    for tensor in header.tensors:
        number = _layer(tensor)
        if number is not None and number >= count:
            continue  # a draft layer: loaded for speculation only
        loaded += tensor.bytes
        if number is not None:
            layers[number] += tensor.bytes
            kept = number < experts_on_host and EXPERTS.search(tensor.name) is not None
            on_device += tensor.bytes if number >= first and not kept else 0
        elif tensor.name not in LOOKED_UP or (tied and tensor.name == "token_embd.weight" and model.causal):
            on_device += tensor.bytes if first <= count and offloaded != 0 else 0
    return Weights(loaded=loaded, layers=tuple(layers), on_device=on_device)


def _layer(tensor: Tensor) -> int | None:
    words = tensor.name.split(".", 2)
    return int(words[1]) if words[0] == "blk" and len(words) > 2 and words[1].isdecimal() else None
