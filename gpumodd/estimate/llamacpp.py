"""The memory one llama-server takes: from a model's header and the way it is run to MiB.

Owns the sum and its parts. Everything is counted from the mechanism, in bytes; `docs/estimates.md` has the
mechanisms and how far off the figures were.
"""

from dataclasses import dataclass

from gpumodd.estimate.dimensions import Dimensions, dimensions
from gpumodd.estimate.gguf import Header
from gpumodd.estimate.quantization import BY_NAME, Quantization

MIB = 1 << 20
# What every process takes on every device it uses before it holds a single weight: the CUDA context, the kernels'
# code, and cuBLAS's workspace. Between 250 and 600 MiB by driver and card.
OVERHEAD = 400 * MIB
CACHE_TYPES = frozenset({"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"})
F16 = BY_NAME["f16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How llama-server is started, as far as memory depends on it; its own defaults."""

    context: int = 0  # tokens of all slots together; 0: what the model was trained with
    slots: int | None = None  # None: four slots that share one cache
    key_type: Quantization = F16
    value_type: Quantization = F16
    batch: int = 2048
    micro_batch: int = 512
    devices: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where the memory goes, in bytes."""

    weights: int
    cache: int
    compute: int
    overhead: int
    on_host: int  # the part of all this that stays in host memory

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.compute + self.overhead

    @property
    def vram_mib(self) -> int:
        return -(-(self.total - self.on_host) // MIB)


def breakdown(header: Header, run: Run) -> Breakdown:
    """The memory of this model, run like this; raises BadModel."""
    model = dimensions(header)
    context = padded(run.context or model.trained_context)
    micro_batch = min(run.micro_batch, run.batch, context)
    names = {tensor.name for tensor in header.tensors}
    tied = "output.weight" not in names
    tables = sum(tensor.bytes for tensor in header.tensors if tensor.name == "token_embd.weight" and not tied)
    return Breakdown(
        weights=sum(tensor.bytes for tensor in header.tensors),
        cache=_cache(model, run, context),
        compute=_compute(model, context, micro_batch),
        overhead=OVERHEAD * run.devices,
        on_host=tables,
    )


def padded(cells: int) -> int:
    """A cache has a multiple of 256 cells."""
    return -(-cells // 256) * 256


def _cache(model: Dimensions, run: Run, context: int) -> int:
    return sum(
        layer.kv_heads * (run.key_type.bytes(layer.key * context) + run.value_type.bytes(layer.value * context))
        for layer in model.layers
        if layer.cached
    )


def _compute(model: Dimensions, context: int, micro_batch: int) -> int:
    widest = max(5 * model.embedding + 3 * layer.feed_forward for layer in model.layers)
    return context * micro_batch * 2 + micro_batch * widest * 4
