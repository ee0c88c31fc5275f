"""The example that comes with the package, and how `gpumodd init` copies it."""

import json
import os
import stat

import pytest

from gpumodd.config import reference, schema
from gpumodd.config.document import parse
from gpumodd.config.load import load
from gpumodd.config.shipped import shipped, write_example
from tests.config.tree import BUILT_IN, Tree


def example():
    return load(shipped("config"), environ={}, registry=BUILT_IN)


def test_it_has_no_errors_and_no_warnings_but_missing_programs():
    loaded = example()
    assert [problem.text() for problem in loaded.errors] == []
    assert {problem.code for problem in loaded.warnings} <= {"program_missing"}


def test_the_sums_of_its_modes():
    catalog = example().catalog
    sums = {id: sum(catalog.services[s].vram_mib for s in mode.services) for id, mode in catalog.modes.items()}
    assert (sums["blank"], sums["rag"], sums["hermes-agent"]) == (0, 7500, 22_500)
    assert catalog.modes["rag"].services == ("vllm-embedding-code", "vllm-embedding")
    assert catalog.services["vllm-embedding-code"].vram_mib == 2500
    assert catalog.services["vllm-embedding"].vram_mib == 5000
    assert max(sums.values()) <= 24_564 - catalog.policy.vram_reserve_mib


def test_it_shows_every_driver_and_every_mode_has_words():
    catalog = example().catalog
    assert {service.driver for service in catalog.services.values()} == set(BUILT_IN.drivers)
    assert all(mode.description and mode.name != mode.id for mode in catalog.modes.values())
    used = {service for mode in catalog.modes.values() for service in mode.services}
    assert used == set(catalog.services)
    ports = [service.port for service in catalog.services.values()]
    assert len(set(ports)) == len(ports)


def test_its_settings_are_all_keys_with_their_defaults():
    loaded = example()
    assert loaded.settings == schema.Settings()
    assert {setting.source.split(":")[0] for setting in loaded.by_key.values()} == {"gpumodd.yaml"}


def test_no_service_restates_nothing():
    """A key that only repeats a default teaches nothing; the comments do."""
    for path in sorted((shipped("config") / "services").glob("*.yaml")):
        keys = parse(path.read_text(), path.name)[0].value
        for key, value in keys.items():
            field = schema.Service.model_fields[key]
            assert field.is_required() or value != field.get_default(call_default_factory=True), f"{path.name}: {key}"
        assert path.read_text().count("#") >= 2


def test_the_schemas_are_up_to_date():
    folder = shipped("config") / "schema"
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    assert texts == reference.schemas(), "run: python -m gpumodd.config.reference"
    for path in shipped("config").rglob("*.yaml"):
        target = path.read_text().splitlines()[0].partition("$schema=")[2]
        assert (path.parent / target).resolve().parent == folder.resolve()


class TestInit:
    """Copying it."""

    def test_a_fresh_directory(self, tmp_path):
        target = tmp_path / "a" / "b" / "gpumodd"
        written = write_example(target)
        assert sorted(written) == sorted(path for path in target.rglob("*") if path.is_file())
        assert load(target, environ={}, registry=BUILT_IN).errors == ()
        assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}
        folders = [target, *(path for path in target.rglob("*") if path.is_dir())]
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
        assert [path.name for path in target.parent.iterdir()] == ["gpumodd"]

    def test_an_empty_directory(self, tmp_path):
        (tmp_path / "empty").mkdir()
        write_example(tmp_path / "empty")
        assert (tmp_path / "empty/gpumodd.yaml").exists()

    def test_existing_files_are_never_overwritten(self, tmp_path):
        tree = Tree(tmp_path / "c").write("modes/rag.yaml", "mine").write("services/other.yaml", "mine too")
        with pytest.raises(FileExistsError, match=r"cannot write the example to .*: it has modes/rag\.yaml$"):
            write_example(tree.directory)
        files = {path.name: path.read_text() for path in tree.directory.rglob("*") if path.is_file()}
        assert files == {"rag.yaml": "mine", "other.yaml": "mine too"}

    def test_a_link_to_nothing_counts_as_a_file(self, tmp_path):
        (tmp_path / "c").mkdir()
        (tmp_path / "c/gpumodd.yaml").symlink_to("nothing")
        with pytest.raises(FileExistsError, match=r"gpumodd\.yaml"):
            write_example(tmp_path / "c")
        write_example(tmp_path / "d")
        with pytest.raises(FileExistsError, match=r"modes/blank\.yaml, .* and \d+ more$"):
            write_example(tmp_path / "d")

    def test_a_directory_with_other_files_keeps_them(self, tmp_path):
        tree = Tree(tmp_path / "c").write("services/other.yaml", "mine")
        write_example(tree.directory)
        assert (tree.directory / "services/other.yaml").read_text() == "mine"
        assert (tree.directory / "modes/rag.yaml").exists()

    def test_force_replaces_files_and_keeps_others(self, tmp_path):
        tree = Tree(tmp_path / "c").write("modes/rag.yaml", "mine").write("services/other.yaml", "mine")
        write_example(tree.directory, force=True)
        assert "dual embeddings" in (tree.directory / "modes/rag.yaml").read_text()
        assert (tree.directory / "services/other.yaml").read_text() == "mine"

    def test_what_is_in_the_way(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        for target in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(NotADirectoryError) as caught:
                write_example(target)
            assert str(tmp_path / "file") in str(caught.value)
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_directory_that_may_not_be_written(self, tmp_path):
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (tmp_path / "c").mkdir(mode=0o500)
        with pytest.raises(PermissionError):
            write_example(tmp_path / "c" / "d")


def test_what_is_not_shipped():
    with pytest.raises(FileNotFoundError, match="this installation is incomplete"):
        shipped("nothing")


def test_the_systemd_files_are_shipped():
    folder = shipped("contrib") / "systemd"
    service = (folder / "gpumodd.service").read_text()
    assert {"Type=notify", "WatchdogSec=30", "KillMode=mixed"} <= set(service.splitlines())
    assert "Slice=" not in service.replace("gpumod.slice", "")
    assert "ListenStream=%t/gpumodd/gpumodd.sock" in (folder / "gpumodd.socket").read_text()


@pytest.mark.parametrize("kind", schema.FILES)
def test_a_schema_is_json(kind):
    assert json.loads(json.dumps(schema.json_schema(kind)))["type"] == "object"
