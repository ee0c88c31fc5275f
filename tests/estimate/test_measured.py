"""The estimates against what llama-server itself planned for published models: `measured.json` says how it was made."""

import functools
from statistics import median

import pytest

from gpumodd.estimate import flags
from gpumodd.estimate.llamacpp import MIB, Breakdown, breakdown
from tests.support.published_models import Measurement, Model, header, load

MODELS = load()
CONTEXT, COMPUTE, TOTAL = 0.005, 0.10, 0.05
ROUNDING = 0.02  # MiB; the server prints two decimals
# Where single runs are further off, and why. Each is bounded all the same.
ROUGH = {
    "arctic": 0.15,  # with coarse caches: experts beside the attention, in another order
    "cogvlm": 0.20,  # no room for ready-made embeddings beside the tokens' own
    "exaone4-1.2b": 0.20,  # where a network is exactly twice as wide as the stream, a hole is not used as expected
    "gemma3n-e4b": 0.15,  # without flash attention
    "gemma4-e4b": 0.15,  # with coarse caches: the holes that per-layer embeddings leave
    "mimo2": 0.20,  # one of its contexts; the others are exact
}


@functools.cache
def estimated(name: str) -> list[tuple[Measurement, Breakdown]]:
    """Every run of the model, and the estimate for it."""
    found = header(MODELS[name])
    return [(run, breakdown(found, flags.run(run.args, {}))) for run in MODELS[name].runs]


def weights(model: Model) -> tuple[float, float]:
    """What the server loads, estimated and measured, in MiB."""
    found = estimated(model.name)[0][1].weights / MIB
    tables = [tensor.bytes for tensor in header(model).tensors if tensor.name in ("token_embd.weight", "output.weight")]
    table = max(tables) / MIB
    # Where the output matrix is the table of tokens, the plan for a CPU counts it twice for some models.
    twice = model.loaded - found > table - 2
    return found, model.loaded - (table if twice else 0)


def off(found: float, measured: float) -> float:
    """How far off, in parts of what was measured."""
    return max(0.0, abs(found / MIB - measured) - ROUNDING) / max(measured, ROUNDING)


def test_there_is_something_of_everything():
    architectures = {model.architecture for model in MODELS.values()}
    assert len(architectures) >= 60
    assert {"llama", "qwen3moe", "gemma3", "deepseek2", "nemotron_h", "mamba2", "rwkv7", "bert"} <= architectures
    assert sum(len(model.runs) for model in MODELS.values()) > 1000


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_context(model: Model):
    """Keys, values and states."""
    wrong = {
        run.args: (run.context, round(found.cache / MIB, 2))
        for run, found in estimated(model.name)
        if off(found.cache, run.context) > CONTEXT
    }
    assert wrong == {}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_compute(model: Model):
    """Buffers of results."""
    wrong = {
        run.args: (run.compute, round(found.compute / MIB, 2))
        for run, found in estimated(model.name)
        if off(found.compute, run.compute) > ROUGH.get(model.name, COMPUTE)
        and abs(found.compute / MIB - run.compute) > 1  # less cannot be told from what a total is rounded to
    }
    assert wrong == {}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_weights(model: Model):
    found, measured = weights(model)
    assert found == pytest.approx(measured, abs=1.5, rel=0.001)


def test_in_all():
    """Most are exact; the median and the worst of what a service takes."""
    totals, computes = [], []
    for model in MODELS.values():
        loaded = weights(model)[1]
        for run, found in estimated(model.name):
            measured = loaded + run.context + run.compute
            totals.append(off(found.weights + found.cache + found.compute, measured))
            computes.append(off(found.compute, run.compute))
    assert median(totals) <= 0.001
    assert max(totals) <= TOTAL
    assert median(computes) <= 0.001
    assert sum(far > COMPUTE for far in computes) <= 0.02 * len(computes)
