"""The committed figures are what llama-server says: a few of them are asked for again."""

from dataclasses import replace
from pathlib import Path

import pytest

from gpumodd.estimate.gguf import parse
from tests.support.llama import llama_server
from tests.support.memory_oracle import measure
from tests.support.published_models import MEASURED, Model, header, load, save, write_sparse

MODELS = load()


@pytest.mark.real
@pytest.mark.parametrize("name", ["llama31-8b", "gemma3-1b", "falcon-h1-7b", "bge-large"])
def test_the_server_still_says_so(name: str, tmp_path: Path):
    model = MODELS[name]
    path = write_sparse(model, tmp_path / "model.gguf")
    for run in model.runs[:2]:
        loaded, again = measure(llama_server(), path, *run.args)
        assert loaded == pytest.approx(model.loaded, abs=1)
        assert (again.context, again.compute) == (
            pytest.approx(run.context, rel=0.005),
            pytest.approx(run.compute, rel=0.10),
        )


def test_the_sparse_file_says_what_the_fixture_says(tmp_path: Path):
    model = MODELS["granite4-h-tiny"]
    path = write_sparse(model, tmp_path / "model.gguf")
    with path.open("rb") as file:
        found = parse(file.read)
    assert set(found.tensors) == set(header(model).tensors)
    assert (
        found.metadata.items() >= {k: v for k, v in header(model).metadata.items() if not isinstance(v, float)}.items()
    )
    assert path.stat().st_blocks * 512 < path.stat().st_size / 1000


def test_the_fixture_is_written_as_it_is_read(tmp_path: Path):
    save(MODELS.values(), {}, tmp_path / "again.json")
    again = load(tmp_path / "again.json")
    assert {name: sorted_(model) for name, model in again.items()} == {n: sorted_(m) for n, m in MODELS.items()}
    assert MEASURED.stat().st_size < 1 << 20


def sorted_(model: Model) -> Model:
    """Its tensors in an order that does not matter."""
    return replace(model, tensors=tuple(sorted(model.tensors)))
