"""The memory one vLLM server needs: weights, keys and values for one sequence of full length, and what comes with them.

Owns a simple sum that was not measured. vLLM takes what `--gpu-memory-utilization` gives it, a share of the whole
device; this is the least that share has to be.
"""

from dataclasses import dataclass

from gpumodd.estimate.checkpoint import Checkpoint

MIB = 1 << 20
# The context, the kernels' code, captured graphs and activations, on every device.
OVERHEAD = 1536 * MIB
WIDTHS = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """How vLLM is started, as far as memory depends on it."""

    context: int | None = None  # None: as long as the model can
    cache_type: str = "auto"
    cache_bytes: int | None = None  # what the user gives the cache, on each device
    devices: int = 1


def needed(model: Checkpoint, need: Need) -> int:
    """Bytes on all devices together; raises BadModel."""
    context = need.context or model.number("max_position_embeddings", "max_sequence_length", "n_positions")
    cache = context * per_token(model) * WIDTHS.get(need.cache_type, 2)
    if need.cache_bytes is not None:
        cache = need.cache_bytes * need.devices
    return model.weights + cache + OVERHEAD * need.devices


def per_token(model: Checkpoint) -> int:
    """Numbers that are kept of each token."""
    layers = model.number("num_hidden_layers", "n_layer")
    latent = model.number("kv_lora_rank", default=1) if "kv_lora_rank" in model.text else 0
    if latent:
        return layers * (latent + model.number("qk_rope_head_dim"))
    heads = model.number("num_attention_heads", "n_head")
    size = model.number("head_dim", default=max(1, model.number("hidden_size", "n_embd") // heads))
    return layers * 2 * model.number("num_key_value_heads", default=heads) * size
