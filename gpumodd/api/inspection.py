"""What a model file says of itself, and what it would take: `model.inspect`.

Owns the way from a path to an answer. The file is read in a worker thread, its header only.
"""

from pathlib import Path

import anyio.to_thread

from gpumodd.api.connection import Session
from gpumodd.config.model_files import MODEL_FILES, Unusable
from gpumodd.estimate.dimensions import dimensions
from gpumodd.estimate.gguf import BadModel
from gpumodd.estimate.llamacpp import CACHE_TYPES, MIB, Run, breakdown
from gpumodd.estimate.quantization import BY_NAME, Quantization
from gpumodd.wire import methods as m
from gpumodd.wire import types as t
from gpumodd.wire.errors import RpcError


async def inspect(_session: Session, params: m.ModelInspectParams) -> t.ModelInspection:
    """The model at this path, with this context and these cache types; raises RpcError."""
    run = Run(
        context=params.context or 0,
        slots=params.parallel,
        key_type=_cache_type(params.cache_type_k),
        value_type=_cache_type(params.cache_type_v),
    )
    return await anyio.to_thread.run_sync(_inspected, params.path, run)


def _cache_type(name: str) -> Quantization:
    if name not in CACHE_TYPES:
        known = ", ".join(sorted(CACHE_TYPES))
        raise RpcError("invalid_params", f"cannot use the cache type {name!r:.40}", hint=f"known: {known}")
    return BY_NAME[name]


def _inspected(path: str, run: Run) -> t.ModelInspection:
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:
        expanded = Path(path)
    if not expanded.is_absolute():
        raise RpcError(
            "invalid_params", f"cannot inspect {path!r:.200}: it is no whole path", hint="begin it with / or ~"
        )
    try:
        header = MODEL_FILES.header(str(expanded))
        model, found = dimensions(header), breakdown(header, run)
    except Unusable as error:
        raise RpcError("invalid_params", str(error), hint="give the path of a GGUF file") from None
    except BadModel as error:
        raise RpcError("invalid_params", f"cannot estimate {path}: {error}") from None
    return t.ModelInspection(
        path=str(expanded),
        architecture=header.architecture,
        quantization=header.quantization,
        context=run.context or model.trained_context,
        trained_context=model.trained_context,
        weights_mib=_mib(found.weights),
        kv_mib=_mib(found.cache),
        compute_mib=_mib(found.compute),
        overhead_mib=_mib(found.overhead),
        total_mib=_mib(found.total),
        vram_mib=found.vram_mib,
        layers=[
            t.LayerMemory(layer=number, weights_mib=_mib(layer.weights), kv_mib=_mib(layer.cache))
            for number, layer in enumerate(found.layers)
        ],
    )


def _mib(size: int) -> float:
    return round(size / MIB, 2)
