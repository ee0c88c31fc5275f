"""What llama-server says it takes, without letting it take anything.

It is started on a sparse file with its own plan switched on (`--fit on`, the default), read until it prints the
breakdown of that plan, and ended: a tenth of a second. Nothing is loaded, so the file's weights are never read.

    python -m tests.support.memory_oracle                  measures every model of `measured.json` anew
    python -m tests.support.memory_oracle add FILE.json    finds out the tensors of new models and measures them

FILE.json: {name: {"architecture": …, "metadata": {…}, "extra": {tensor: shape}, "type": "Q4_K"}}, keys without the
architecture's name. The server itself says which tensors it misses and which shape they have; what is optional but
real goes into `extra`, with `*` for the number of a layer.
"""

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.support.llama import llama_server, version
from tests.support.published_models import MEASURED, Measurement, Model, load, save, write_sparse

LIMIT_S = 20.0
ROUNDS = 400
DECODERS = (
    "-c 4096 -ub 512",
    "-c 32768",
    "-c 131072",
    "-c 5000",
    "-c 1000 -np 3",
    "-c 8192 -np 1",
    "-c 16384 -np 4",
    "-c 8192 -np 8 -kvu",
    "-c 8192 -ub 128",
    "-c 16384 -np 2 -ub 1024",
    "-c 16384 -ub 2048",
    "-c 16384 -ctk q8_0 -ctv q8_0",
    "-c 8192 -ctk q4_0",
    "-c 8192 -np 1 --swa-full",
    "-c 8192 -fa off",
    "-c 32768 -np 2 -fa off",
)
ENCODERS = ("-c 512", "-c 2048 -ub 2048 -np 1", "-c 2048 -ub 1024 -np 2", "-c 2048 -ub 2048 -fa off", "-c 2048 -ub 128")


class Refused(Exception):
    """The server ended without a plan; what it said last."""


def ask(program: Path, model: Path, *args: str) -> str:
    """All that the server says up to its breakdown, or to its end."""
    command = [program, "--model", model, "-lv", "5", "-nr", "--port", "0", "-t", "1", "--offline", *args]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as server:
        try:
            return "".join(_until_breakdown(server))
        finally:
            server.kill()


def _until_breakdown(server: subprocess.Popen[bytes]) -> Iterator[str]:
    assert server.stderr is not None
    end, tail = time.monotonic() + LIMIT_S, ""
    while time.monotonic() < end:
        if not select.select([server.stderr], [], [], 0.5)[0]:
            continue
        piece = os.read(server.stderr.fileno(), 1 << 16).decode("utf-8", "replace")
        yield piece
        tail = tail[-200:] + piece
        if not piece or re.search(r"- Host +\|[^\n]*\n", tail):
            return


def measure(program: Path, model: Path, *args: str) -> tuple[float, Measurement]:
    """MiB of weights, context and compute buffer; raises Refused."""
    said = ask(program, model, *args)
    table = re.search(r"- Host +\| +\d+ = +(\d+) \+ +(\d+) \+ +(\d+)", said)
    if table is None:
        raise Refused("\n".join(said.splitlines()[-3:]))
    # The table has whole MiB; the lines before it have two decimals.
    context = sum(float(size) for size in re.findall(r"size = +([\d.]+) MiB \(", said))
    compute = sum(float(size) for size in re.findall(r"compute buffer size = +([\d.]+)", said))
    return float(table[1]), Measurement(args=args, context=round(context, 2), compute=round(compute, 2))


def measured(program: Path, model: Model, folder: Path) -> Model:
    """The model with every run that the server does not refuse."""
    path = write_sparse(model, folder / "model.gguf")
    runs, loaded = [], 0.0
    for line in DECODERS if model.metadata.get("attention.causal", True) else ENCODERS:
        try:
            loaded, run = measure(program, path, *line.split())
        except Refused as error:
            print(f"{model.name} {line}: refused: {str(error)[:200]!r}")
            continue
        runs.append(run)
    path.unlink()
    return replace(model, runs=tuple(runs), loaded=int(loaded))


def discovered(program: Path, name: str, said: dict, folder: Path) -> Model:
    """The model with all tensors that the server wants to have; raises Refused."""
    layers, kind = said["metadata"]["block_count"], said.get("type", "Q4_K")
    shapes: dict[str, tuple[int, ...]] = {}
    for pattern, shape in said.get("extra", {}).items():
        names = [pattern.replace("*", str(i)) for i in range(layers)] if "*" in pattern else [pattern]
        shapes |= dict.fromkeys(names, tuple(shape))
    metadata = {"tokenizer.ggml.model": "none", **said["metadata"]}
    for _ in range(ROUNDS):
        tensors = tuple((tensor, shape, _type(tensor, shape, kind)) for tensor, shape in shapes.items())
        model = Model(name=name, architecture=said["architecture"], metadata=metadata, tensors=tensors)
        answer = ask(program, write_sparse(model, folder / "model.gguf"), "-c", "512", "-ub", "32")
        if re.search(r"- Host +\|", answer):
            return model
        if not _learnt(answer, shapes, layers):
            raise Refused("\n".join(answer.splitlines()[-4:]))
    raise Refused("it wants more and more")


def _learnt(answer: str, shapes: dict[str, tuple[int, ...]], layers: int) -> bool:
    """Take from the server's complaint what was wrong with the tensors."""
    if found := re.search(r"tensor '([^']+)' not found", answer):
        shapes |= {name: shapes.get(name, (32,)) for name in _siblings(found[1], layers)}
        return True
    if found := re.search(r"tensor '([^']+)' has wrong shape; expected\s+([\d, ]+), got", answer):
        shape = [int(size) for size in found[2].split(",")]
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        shapes |= {name: tuple(shape) for name in _siblings(found[1], layers) if name in shapes}
        return True
    if re.search(r"wrong number of tensors", answer):
        asked = set(re.findall(r"loading tensor (\S+)", answer))
        unasked = [name for name in shapes if name not in asked]
        for name in unasked:
            del shapes[name]
        return bool(unasked)
    return False


def _siblings(name: str, layers: int) -> list[str]:
    """The same tensor of this layer and of all behind it."""
    found = re.fullmatch(r"blk\.(\d+)\.(.*)", name)
    return [f"blk.{i}.{found[2]}" for i in range(int(found[1]), layers)] if found else [name]


def _type(name: str, shape: tuple[int, ...], kind: str) -> str:
    """What a quantiser makes of a tensor: vectors and routers stay, short rows fall back."""
    small = ("_norm", "ssm_conv1d", "ssm_a", "ssm_d", "ffn_gate_inp", "shortconv.conv")
    if len(shape) == 1 or any(part in name for part in small):
        return "F32"
    if kind == "Q4_K" and name.endswith(("output.weight", "ffn_down.weight", "attn_v.weight")):
        kind = "Q6_K"
    if kind in ("Q4_K", "Q6_K") and shape[0] % 256:
        kind = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}[kind]
    return "F16" if kind.startswith("Q") and shape[0] % 32 else kind


def main(words: list[str]) -> None:
    program = llama_server()
    models = load() if MEASURED.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if words[:1] == ["add"]:
            for name, said in json.loads(Path(words[1]).read_text()).items():
                models[name] = measured(program, discovered(program, name, said, Path(folder)), Path(folder))
        else:
            models = {name: measured(program, model, Path(folder)) for name, model in models.items()}
    made = {"by": "python -m tests.support.memory_oracle", "with": version(program)}
    save(models.values(), made)


if __name__ == "__main__":
    main(sys.argv[1:])
