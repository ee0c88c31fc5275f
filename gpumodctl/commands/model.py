"""`gpumodctl model …`: model files."""

from pathlib import Path

import click

from gpumodctl import text
from gpumodctl.client import decode
from gpumodctl.invocation import Invocation
from gpumodctl.options import group
from gpumodd.wire.types import ModelInspection

model = group("model", help="Look into model files.")


@model.command("inspect", help="Show what the GGUF file PATH is and the memory it takes.")
@click.argument("path", type=click.Path())
@click.option("--context", type=click.IntRange(1, 1 << 30), metavar="N", help="Tokens; else what it was trained with.")
@click.option("--parallel", type=click.IntRange(1, 256), metavar="N", help="Slots; else four that share one cache.")
@click.option("--cache-type-k", default="f16", show_default=True, metavar="TYPE", help="How keys are stored.")
@click.option("--cache-type-v", default="f16", show_default=True, metavar="TYPE", help="How values are stored.")
@click.pass_obj
def inspect(
    invocation: Invocation,
    path: str,
    context: int | None,
    parallel: int | None,
    cache_type_k: str,
    cache_type_v: str,
) -> None:
    asked: dict[str, object] = {"path": path if path.startswith("~") else str(Path(path).absolute())}
    given = {"context": context, "parallel": parallel, "cache_type_k": cache_type_k, "cache_type_v": cache_type_v}
    asked |= {key: value for key, value in given.items() if value is not None}
    raw = invocation.ask("model.inspect", asked)
    if invocation.json:
        invocation.document(raw)
        return
    shown = decode(raw, ModelInspection)
    width = invocation.out.columns
    invocation.say(
        text.cut(text.clean(f"{shown.architecture}, {shown.quantization}, {len(shown.layers)} layers"), width)
    )
    invocation.say(f"context {shown.context} of {shown.trained_context} tokens", "")
    parts = [
        ("weights", shown.weights_mib),
        ("cache", shown.kv_mib),
        ("compute buffer", shown.compute_mib),
        ("overhead", shown.overhead_mib),
        ("total", shown.total_mib),
        ("of that on the device", float(shown.vram_mib)),
    ]
    invocation.table(("", "MiB"), [(name, f"{mib:.0f}") for name, mib in parts], numbers=(1,))
