"""Models as their authors published them, without a weight: metadata and the shapes of all tensors.

`measured.json` holds them, together with what llama-server says it takes to run them. `header` makes of one what the
estimator reads, `write_sparse` a file that llama-server plans for: as long as the real one, and empty.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf as writer_library
import numpy as np
from gguf.constants import GGML_QUANT_SIZES

from gpumodd.estimate.gguf import Header, Tensor
from gpumodd.estimate.quantization import BY_NAME

MEASURED = Path(__file__).parents[1] / "estimate" / "measured.json"
COMMON = ("general.", "tokenizer.", "xielu.")  # keys that do not begin with the architecture's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run: the command line, and what it takes in MiB."""

    args: tuple[str, ...]
    context: float
    compute: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One published model."""

    name: str
    architecture: str
    metadata: Mapping[str, Any]  # keys without the architecture's name
    tensors: tuple[tuple[str, tuple[int, ...], str], ...]  # name, shape, type
    loaded: int = 0  # MiB of weights that the server loads
    runs: tuple[Measurement, ...] = ()

    def keys(self) -> dict[str, Any]:
        named = {k if k.startswith(COMMON) else f"{self.architecture}.{k}": v for k, v in self.metadata.items()}
        return {"general.architecture": self.architecture, **named}


def header(model: Model) -> Header:
    """What a reader finds in this model's file."""
    metadata = {key: tuple(value) if isinstance(value, list) else value for key, value in model.keys().items()}
    tensors = tuple(Tensor(name, shape, BY_NAME[kind.lower()]) for name, shape, kind in model.tensors)
    return Header(metadata=metadata, tensors=tensors)


def write_sparse(model: Model, path: Path) -> Path:
    """The file, as long as the real one; only its header takes room on the disk."""
    writer = writer_library.GGUFWriter(path, model.architecture)
    for key, value in model.keys().items():
        if key != "general.architecture":
            _add(writer, key, value)
    end = 0
    for name, shape, kind in model.tensors:
        number = writer_library.GGMLQuantizationType[kind]
        block, size = GGML_QUANT_SIZES[number]
        length = prod(shape) // block * size
        writer.add_tensor_info(name, list(reversed(shape)), np.dtype(np.float32), length, raw_dtype=number)
        end += -(-length // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    start = writer.fout[0].tell()
    writer.close()
    os.truncate(path, start + end + 32)
    return path


def _add(writer: writer_library.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def load(path: Path = MEASURED) -> dict[str, Model]:
    """All models, by name."""
    return {name: _model(name, said) for name, said in json.loads(path.read_text())["models"].items()}


def save(models: Iterable[Model], made: Mapping[str, str], path: Path = MEASURED) -> None:
    """One model a line, so that a change shows which."""
    lines = [f"{json.dumps(model.name)}: {_said(model)}" for model in sorted(models, key=lambda model: model.name)]
    path.write_text(f'{{"made": {json.dumps(made, indent=1)},\n"models": {{\n' + ",\n".join(lines) + "\n}}\n")


def _said(model: Model) -> str:
    """Tensors by what they are called in their layer: [name, shape, type, layers]."""
    by_kind: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    for name, shape, kind in model.tensors:
        found = re.fullmatch(r"blk\.(\d+)\.(.*)", name)
        by_kind.setdefault((found[2] if found else name, shape, kind), []).append(int(found[1]) if found else -1)
    said = {
        "architecture": model.architecture,
        "metadata": model.metadata,
        "tensors": [[name, shape, kind, _spans(layers)] for (name, shape, kind), layers in by_kind.items()],
        "loaded": model.loaded,
        "runs": [[" ".join(run.args), run.context, run.compute] for run in model.runs],
    }
    return json.dumps(said, separators=(",", ":"))


def _model(name: str, said: Mapping[str, Any]) -> Model:
    tensors = [
        ((number, place), f"blk.{number}.{what}" if number >= 0 else what, tuple(shape), kind)
        for place, (what, shape, kind, spans) in enumerate(said["tensors"])
        for number in _numbers(spans)
    ]
    return Model(
        name=name,
        architecture=said["architecture"],
        metadata=said["metadata"],
        tensors=tuple((what, shape, kind) for _, what, shape, kind in sorted(tensors)),
        loaded=said["loaded"],
        runs=tuple(Measurement(args=tuple(a.split()), context=c, compute=m) for a, c, m in said["runs"]),
    )


def _spans(numbers: list[int]) -> str:
    """1 2 3 5 as 1-3,5; -1, outside of all layers, as nothing."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return "" if numbers == [-1] else ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in spans)


def _numbers(spans: str) -> list[int]:
    if not spans:
        return [-1]
    pairs = [(span.split("-")[0], span.split("-")[-1]) for span in spans.split(",")]
    return [number for a, b in pairs for number in range(int(a), int(b) + 1)]
