"""A service that declares no memory gets an estimate from its model's file, or a warning that says why not."""

import json
import os
import re
import shutil
import struct
from pathlib import Path

import pytest

from gpumodd.config.check import report
from gpumodd.config.model_files import ModelFiles, Unusable
from gpumodd.core.specs import VramSource
from tests.config.tree import Tree
from tests.support import tiny_gguf


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def model(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy2(written, tmp_path / "tiny.gguf"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "config")


def llama(tree: Tree, model: Path | str, **keys: str) -> Tree:
    lines = {"id": "chat", "driver": "llamacpp", "model": str(model), "port": "8000", **keys}
    return tree.write("services/chat.yaml", "".join(f"{key}: {value}\n" for key, value in lines.items()))


def vram(tree: Tree) -> int:
    figure = tree.load().catalog.services["chat"].vram_mib
    assert figure is not None
    return figure


def test_a_service_without_a_figure_gets_an_estimate(tree: Tree, model: Path):
    loaded = llama(tree, model).load()
    spec = loaded.catalog.services["chat"]
    assert spec.vram_source is VramSource.ESTIMATED
    assert spec.vram_mib > 0
    assert [w for w in loaded.warnings if w.code == "vram_unknown"] == []


def test_a_declared_figure_stays(tree: Tree, model: Path):
    loaded = llama(tree, model, vram_mib="77").load()
    spec = loaded.catalog.services["chat"]
    assert (spec.vram_mib, spec.vram_source) == (77, VramSource.DECLARED)
    assert loaded.vram_at("chat", 4096) is None


def test_context_and_flags_count(tree: Tree, model: Path):
    small = vram(llama(tree, model, context="1024"))
    large = vram(llama(tree, model, context="1048576"))
    assert large > small + 500  # 512 bytes of keys and values a token, and the mask
    assert vram(llama(tree, model, context="1024", args="[--ctx-size, 1048576]")) == large
    assert vram(llama(tree, model, context="1048576", args="[-ctk, q8_0, -ctv, q8_0]")) < large
    assert vram(llama(tree, model, env="{LLAMA_ARG_CTX_SIZE: 1048576}")) == large


def test_the_figure_for_another_context(tree: Tree, model: Path):
    loaded = llama(tree, model, context="1024").load()
    assert loaded.vram_at("chat", 1024) == loaded.catalog.services["chat"].vram_mib
    assert loaded.vram_at("chat", 1 << 20) == vram(llama(tree, model, context=str(1 << 20)))
    assert loaded.vram_at("nobody", 1024) is None


def test_smaller_contexts_are_offered_with_what_they_take(tree: Tree, model: Path):
    loaded = llama(tree, model, context="1048576").load()
    spec = loaded.catalog.services["chat"]
    contexts, figures = zip(*spec.sizes, strict=True)
    assert list(contexts) == sorted(set(contexts), reverse=True)
    assert list(figures) == sorted(set(figures), reverse=True)
    assert contexts[0] < 1048576
    assert figures[0] < spec.vram_mib
    assert all(loaded.vram_at("chat", context) == mib for context, mib in spec.sizes)
    assert llama(tree, model, vram_mib="77").load().catalog.services["chat"].sizes == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file or directory"), (b"", "cut short"), (b"PK\3\4" + bytes(64), "not a GGUF file")],
)
def test_a_file_that_says_nothing_gives_no_estimate_and_a_warning(tree: Tree, tmp_path: Path, content, said: str):
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    loaded = llama(tree, path).load()
    assert loaded.catalog.services["chat"].vram_mib is None
    (warning,) = [w for w in loaded.warnings if w.code == "vram_unknown"]
    assert (warning.file, warning.path, warning.line) == ("services/chat.yaml", "model", 3)
    assert str(path) in warning.message
    assert said in warning.message


def test_a_pipe_and_a_directory_hold_nobody_up(tree: Tree, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        (warning,) = [w for w in llama(tree, path).load().warnings if w.code == "vram_unknown"]
        assert "cannot read" in warning.message


def test_a_header_is_read_again_only_when_its_file_changed(model: Path, written: Path):
    files = ModelFiles()
    first = files.header(str(model))
    assert files.header(str(model)) is first
    shutil.copy(tiny_gguf.write(model.parent / "other.gguf", width=128), model)
    assert files.header(str(model)).metadata["llama.embedding_length"] == 128
    model.unlink()
    with pytest.raises(Unusable, match="no such file"):
        files.header(str(model))


def test_a_draft_model_counts_too(tree: Tree, model: Path):
    alone = vram(llama(tree, model))
    other = tiny_gguf.write(model.parent / "draft.gguf", feed_forward=8192)  # 6 MiB
    assert vram(llama(tree, model, args=f"[--spec-draft-model, {other}]")) >= alone + 6
    (warning,) = [
        w for w in llama(tree, model, args="[-md, /nowhere/d.gguf]").load().warnings if w.code == "vram_unknown"
    ]
    assert "/nowhere/d.gguf" in warning.message


def test_a_driver_that_fails_costs_its_estimate_only(tree: Tree, model: Path, monkeypatch):
    from gpumodd.drivers.llamacpp import LlamaCppDriver

    for wrong in (lambda *a, **k: 1 / 0, lambda *a, **k: "much", lambda *a, **k: -1):
        monkeypatch.setattr(LlamaCppDriver, "estimate_mib", wrong)
        loaded = llama(tree, model).load()
        assert loaded.catalog.services["chat"].vram_mib is None
        assert [w.code for w in loaded.warnings].count("vram_unknown") == 1


def test_a_local_model_of_vllm_is_estimated_an_id_is_not(tree: Tree, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(sizes))
    head = json.dumps({"a": {"dtype": "F16", "shape": [1 << 29], "data_offsets": [0, 1 << 30]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    spec = llama(tree, folder, driver="vllm").load().catalog.services["chat"]
    assert (spec.vram_source, spec.vram_mib) == (VramSource.ESTIMATED, 1024 + 2 + 1536)
    shorter = llama(tree, folder, driver="vllm", context="2048").load().catalog.services["chat"]
    assert shorter.vram_mib == 1024 + 1 + 1536
    assert llama(tree, "org/name", driver="vllm").load().catalog.services["chat"].vram_mib is None
    (folder / "model.safetensors").unlink()
    (warning,) = [w for w in llama(tree, folder, driver="vllm").load().warnings if w.code == "vram_unknown"]
    assert "0 safetensors files" in warning.message


def test_each_driver_wants_its_own_kind_of_model(tree: Tree, model: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    for driver, path, said in (("vllm", model, "no directory"), ("llamacpp", tmp_path, "no GGUF file")):
        (warning,) = [w for w in llama(tree, path, driver=driver).load().warnings if w.code == "vram_unknown"]
        assert said in warning.message


def test_the_check_says_what_each_service_counts_for(tree: Tree, model: Path):
    llama(tree, model).service("declared", vram_mib="77").service("unknown", vram_mib=None)
    text = report(tree.load(), verbose=True)
    assert re.search(r"^services/chat +\d+ MiB  \(estimated\)$", text, re.MULTILINE)
    assert re.search(r"^services/declared +77 MiB  \(declared\)$", text, re.MULTILINE)
    assert re.search(r"^services/unknown +unknown$", text, re.MULTILINE)
