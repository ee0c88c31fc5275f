"""The memory one llama-server takes: from a model's header and the way it is run to bytes.

Owns the sum and its parts, and what of it is on the device. Everything is counted from the mechanism;
`docs/estimates.md` has the mechanisms and how far off the figures were.
"""

from dataclasses import dataclass, replace

from gpumodd.estimate.cache import cache_bytes, cells, padded, state_bytes
from gpumodd.estimate.compute import compute_bytes
from gpumodd.estimate.dimensions import dimensions
from gpumodd.estimate.gguf import BadModel, Header
from gpumodd.estimate.quantization import BY_NAME, Quantization
from gpumodd.estimate.weights import weights

MIB = 1 << 20
# What a process takes on every device it uses before it holds a single weight: the context, the kernels' code, and
# the workspace of the matrix library. Between 250 and 600 MiB by driver and card.
OVERHEAD = 400 * MIB
CACHE_TYPES = frozenset({"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"})
UNIFORM = frozenset({"F32", "F16", "BF16"})  # the others round, and rotate before that
NO_FLASH = frozenset({"grok"})  # switched off for these, whatever was asked for
MAX_CONTEXT = 1 << 30
F16 = BY_NAME["f16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How llama-server is started, as far as memory depends on it; its own defaults."""

    context: int = 0  # tokens of all slots together; 0: what the model was trained with
    slots: int | None = None  # None: four slots that share one cache
    unified: bool | None = None  # the slots share one cache; None: only if their number was not given
    key_type: Quantization = F16
    value_type: Quantization = F16
    batch: int = 2048
    micro_batch: int = 512
    flash: bool = True
    whole_windows: bool = False  # layers with a window keep everything all the same
    offloaded: int | None = None  # layers on the device, from the end; None: all
    experts_on_host: int = 0  # of so many layers, from the start
    cache_on_host: bool = False
    no_device: bool = False
    devices: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """One layer's part of it, in bytes."""

    weights: int
    cache: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where the memory goes, in bytes."""

    weights: int
    cache: int
    compute: int
    overhead: int
    on_device: int  # the part of all this that is not in host memory
    layers: tuple[LayerMemory, ...]

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.compute + self.overhead

    @property
    def vram_mib(self) -> int:
        return mib(self.on_device)


def mib(size: int) -> int:
    """Whole MiB, rounded up."""
    return -(-size // MIB)


def on_device(header: Header, run: Run, *, projector: Header | None = None, draft: Header | None = None) -> int:
    """What a server with these models has on its devices, in bytes; raises BadModel.

    Of a projector only the weights are counted: how large its buffer is depends on the pictures.
    """
    total = breakdown(header, run).on_device
    if run.no_device:
        return total
    if projector is not None:
        total += sum(tensor.bytes for tensor in projector.tensors)
    if draft is not None:
        alone = replace(run, key_type=F16, value_type=F16, offloaded=None, experts_on_host=0)
        total += breakdown(draft, alone).on_device - OVERHEAD * run.devices
    return total


def breakdown(header: Header, run: Run) -> Breakdown:
    """The memory of this model, run like this; raises BadModel."""
    model = dimensions(header)
    context = run.context or model.trained_context
    if not 0 < context <= MAX_CONTEXT:
        raise BadModel(f"cannot use a context of {context} tokens")
    layout = cells(
        padded(context),
        min(run.micro_batch, run.batch),
        slots=run.slots,
        unified=run.unified,
        whole_windows=run.whole_windows,
    )
    flash = run.flash and model.architecture not in NO_FLASH
    placed = weights(header, model, offloaded=run.offloaded, experts_on_host=run.experts_on_host)
    cached = cache_bytes(model, layout, run.key_type, run.value_type, flash=flash)
    remembered = state_bytes(model, layout)
    compute = compute_bytes(
        model,
        layout,
        flash=flash,
        coarse_keys=run.key_type.name not in UNIFORM,
        coarse_values=run.value_type.name not in UNIFORM,
    )
    overhead = OVERHEAD * run.devices
    layers = tuple(
        LayerMemory(weights=weight, cache=keys + state)
        for weight, keys, state in zip(placed.layers, cached, remembered, strict=True)
    )
    first = 0 if run.offloaded is None else max(0, len(layers) + 1 - run.offloaded)
    caches = 0 if run.cache_on_host else sum(cached[first:]) + sum(remembered[first:])
    return Breakdown(
        weights=placed.loaded,
        cache=sum(cached) + sum(remembered),
        compute=compute,
        overhead=overhead,
        on_device=0 if run.no_device else placed.on_device + caches + compute + overhead,
        layers=layers,
    )
