"""The shapes that speak of model files: what one is, and what it would take to run. Published with `types`."""

from msgspec import Struct


class LayerMemory(Struct, kw_only=True):
    """One layer's weights, and its keys, values and states: what moves when it is kept off the device."""

    layer: int
    weights_mib: float
    kv_mib: float


class ModelInspection(Struct, kw_only=True):
    """What a GGUF model is, and the memory llama-server would take for it with this context.

    `weights_mib` is all that is loaded, `kv_mib` the cache and the states of recurrent layers, `compute_mib` the
    buffer of intermediate results, `overhead_mib` what a process takes on a device before it holds any weight;
    `total_mib` is their sum. `vram_mib` is what of it lies on the device when every layer does: look-up tables stay in
    host memory. `layers` are the model's layers one by one, for those who keep some of them off the device.
    """

    path: str
    architecture: str
    quantization: str
    context: int
    trained_context: int
    weights_mib: float
    kv_mib: float
    compute_mib: float
    overhead_mib: float
    total_mib: float
    vram_mib: int
    layers: list[LayerMemory]
