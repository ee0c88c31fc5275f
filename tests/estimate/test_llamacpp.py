"""What lies on the device, and what a bad header is answered with."""

from dataclasses import replace

import pytest

from gpumodd.estimate.gguf import BadModel, Header, Tensor
from gpumodd.estimate.llamacpp import MIB, OVERHEAD, Run, breakdown, on_device
from gpumodd.estimate.quantization import BY_NAME
from tests.support.published_models import header, load

MODELS = load()
LLAMA = header(MODELS["llama31-8b"])
TIED = header(MODELS["llama32-1b"])
EXPERTS = header(MODELS["qwen3-30b-a3b"])


def table(of: Header) -> int:
    return next(tensor.bytes for tensor in of.tensors if tensor.name == "token_embd.weight")


def test_look_up_tables_stay_on_the_host():
    found = breakdown(LLAMA, Run(context=8192))
    assert found.on_device == found.total - table(LLAMA)


def test_a_table_that_is_the_output_too_is_on_the_device():
    found = breakdown(TIED, Run(context=8192))
    assert found.on_device == found.total


def test_layers_are_offloaded_from_the_end():
    whole = breakdown(LLAMA, Run(context=8192))
    half = breakdown(LLAMA, Run(context=8192, offloaded=17))  # 16 layers, and the output
    assert half.total == whole.total
    kept = sum(layer.weights + layer.cache for layer in whole.layers[:16])
    assert whole.on_device - half.on_device == kept
    assert breakdown(LLAMA, Run(context=8192, offloaded=99)).on_device == whole.on_device


def test_no_layer_on_the_device_leaves_the_work():
    found = breakdown(LLAMA, Run(context=8192, offloaded=0))
    assert found.on_device == found.compute + OVERHEAD


def test_no_device_takes_nothing():
    assert breakdown(LLAMA, Run(context=8192, no_device=True)).vram_mib == 0


def test_experts_and_caches_can_stay_on_the_host():
    whole = breakdown(EXPERTS, Run(context=8192))
    without = breakdown(EXPERTS, Run(context=8192, experts_on_host=24))
    experts = sum(t.bytes for t in EXPERTS.tensors if "_exps" in t.name and int(t.name.split(".")[1]) < 24)
    assert whole.on_device - without.on_device == experts
    assert whole.on_device - breakdown(EXPERTS, Run(context=8192, cache_on_host=True)).on_device == whole.cache


def test_models_beside_the_model_are_counted():
    run = Run(context=8192, key_type=BY_NAME["q8_0"])
    alone = on_device(LLAMA, run)
    assert alone == breakdown(LLAMA, run).on_device
    draft = breakdown(TIED, Run(context=8192)).on_device - OVERHEAD
    assert on_device(LLAMA, run, draft=TIED) == alone + draft
    projector = header(MODELS["bge-large"])  # any header does: its weights are all on the device
    assert on_device(LLAMA, run, projector=projector) == alone + sum(t.bytes for t in projector.tensors)


def test_every_device_has_its_overhead():
    one, two = breakdown(LLAMA, Run(context=8192)), breakdown(LLAMA, Run(context=8192, devices=2))
    assert two.vram_mib - one.vram_mib == OVERHEAD // MIB


@pytest.mark.parametrize("name", ["llama31-8b", "gemma3-12b", "deepseek-v3", "nemotron-nano-9b"])
def test_more_context_never_takes_less(name: str):
    found = header(MODELS[name])
    sizes = [breakdown(found, Run(context=1 << power)).total for power in range(8, 20)]
    assert sizes == sorted(sizes)


def test_without_a_context_it_is_the_trained_one():
    trained = LLAMA.metadata["llama.context_length"]
    assert isinstance(trained, int)
    assert breakdown(LLAMA, Run()) == breakdown(LLAMA, Run(context=trained))


@pytest.mark.parametrize(
    "changes",
    [
        {"llama.block_count": 10**9},
        {"llama.block_count": 0},
        {"llama.block_count": "many"},
        {"llama.embedding_length": -1},
        {"llama.attention.head_count": (1, 2)},
        {"llama.attention.head_count": 2.5},
        {"llama.context_length": 0},
        {"llama.context_length": 1 << 39},
        {"general.architecture": 7},
        {"general.architecture": "unheard-of"},
    ],
    ids=str,
)
def test_what_a_header_cannot_mean_is_said(changes: dict[str, object]):
    with pytest.raises(BadModel):
        breakdown(replace(LLAMA, metadata={**LLAMA.metadata, **changes}), Run())


def test_a_model_without_its_tensors_is_refused_or_small():
    """A header can say anything; no shape of it may end in another error."""
    for name in sorted({t.name.split(".", 2)[-1] for model in MODELS.values() for t in header(model).tensors[:60]}):
        for model in (LLAMA, EXPERTS, header(MODELS["falcon-h1-7b"]), header(MODELS["kimi-linear-48b"])):
            fewer = tuple(t for t in model.tensors if not t.name.endswith(name))
            if len(fewer) == len(model.tensors):
                continue
            try:
                assert breakdown(replace(model, tensors=fewer), Run(context=512)).total > 0
            except BadModel as error:
                assert str(error)


@pytest.mark.parametrize("shape", [(), (256,), (256, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize(
    "name", ["llama31-8b", "deepseek-v3", "falcon-h1-7b", "qwen35-9b", "rwkv7-2.9b", "gemma3n-e4b"]
)
def test_shapes_that_nobody_expects_are_refused_or_counted(name: str, shape: tuple[int, ...]):
    model = header(MODELS[name])
    tensors = tuple(Tensor(tensor.name, shape, BY_NAME["f32"]) for tensor in model.tensors)
    try:
        assert breakdown(replace(model, tensors=tensors), Run(context=512)).total > 0
    except BadModel as error:
        assert str(error)


def test_more_slots_than_tokens_is_a_figure_too():
    assert (
        breakdown(LLAMA, Run(context=512, slots=1000)).cache == 1000 * breakdown(LLAMA, Run(context=256, slots=1)).cache
    )
