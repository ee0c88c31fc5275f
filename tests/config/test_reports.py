"""What people read: the report of `gpumodd check`, the reference, and the modes the daemon writes."""

import errno
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpumodd.config import modes, reference
from gpumodd.config.check import report
from gpumodd.config.load import load
from gpumodd.core.specs import ModeSpec
from tests.config.tree import Tree

PAGE = Path(__file__).parents[2] / "docs/configuration.md"


class TestCheck:
    """The report."""

    def test_nothing_wrong(self, tree):
        tree.service("a").mode("m", "a")
        settings, summary = report(tree.load()).splitlines()
        assert re.fullmatch(r"\d+ settings have their default values \(--verbose lists them\)", settings)
        assert summary == f"{tree.directory}: 1 service, 2 modes, 0 errors, 0 warnings"

    def test_every_line_has_the_form(self, tree):
        tree.service("a", port="x", nmae="y").service("b", driver="vllm", model="m", options="{}", env="{PATH: /x}")
        tree.write("modes/m.yaml", "[").write("gpumodd.yaml", "policy: {drift: 1}\n")
        *lines, summary = report(tree.load(GPUMODD_POLICY__X="1")).splitlines()
        assert len(lines) == 6
        for line in lines:
            assert re.fullmatch(r"[^: ]+:\d+:\d+: [^ ]+: .+", line), line
        assert f"{tree.directory}/services/a.yaml:5:7: port: " in "\n".join(lines)
        assert lines[0].startswith("$GPUMODD_POLICY__X:1:1: policy.x: ")
        assert summary.endswith("5 errors, 1 warning")

    def test_verbose_names_every_source(self, tree):
        tree.write("gpumodd.yaml", "policy:\n  vram_limit: 80%\n")
        text = report(tree.load(GPUMODD_POLICY__QUIESCE_S="1.50"), verbose=True)
        assert re.search(r"^policy\.vram_limit +80%  \(gpumodd\.yaml:2:15\)$", text, re.MULTILINE)
        assert re.search(r"^policy\.quiesce_s +1\.5  \(environment GPUMODD_POLICY__QUIESCE_S\)$", text, re.MULTILINE)
        assert re.search(r"^drivers\.vllm\.command +\[vllm, serve\]  \(default\)$", text, re.MULTILINE)
        assert re.search(r"^policy\.restore_mode_at_start +true  \(default\)$", text, re.MULTILINE)
        assert re.search(r"^devices\.table +null  \(default\)$", text, re.MULTILINE)

    def test_what_somebody_chose_is_told_with_its_source(self, tree):
        tree.write("gpumodd.yaml", "policy:\n  drift: heal\n  vram_limit: 80%\n")
        *chosen, left, summary = report(tree.load(GPUMODD_UNITS__BACKEND="auto")).splitlines()
        assert [" ".join(line.split()) for line in chosen] == [
            "units.backend auto (environment GPUMODD_UNITS__BACKEND)",
            "policy.vram_limit 80% (gpumodd.yaml:3:15)",
        ]
        assert left == f"{len(tree.load().by_key) - 2} more settings have their default values (--verbose lists them)"
        assert summary.endswith("0 errors, 0 warnings")

    def test_settings_that_are_wrong_have_no_values(self, tree):
        tree.write("gpumodd.yaml", "policy: {drift: 1, vram_limit: 80%}\n")
        assert "default values" not in report(tree.load())

    def test_no_directory(self, tmp_path):
        text = report(load(tmp_path / "none", environ={}))
        assert text.startswith(
            f"{tmp_path}/none:1:1: .: there is no configuration directory (gpumodd init makes one)\n"
        )


class TestReference:
    """docs/configuration.md tells the truth."""

    def test_the_tables_are_up_to_date(self):
        text = PAGE.read_text()
        assert text == reference.updated(text), "run: python -m gpumodd.config.reference"

    def test_every_key_is_in_it(self):
        text = PAGE.read_text()
        for key in ("policy.vram_limit", "drivers.vllm.command", "health.interval_s", "on_leave", "services"):
            assert f"| `{key}` |" in text

    def test_updating_twice_changes_nothing(self):
        once = reference.updated(f"a\n{reference.BEGIN}\nlast year's\n{reference.END}\nb\n")
        assert once.startswith("a\n")
        assert once.endswith("\nb\n")
        assert "last year's" not in once
        assert reference.updated(once) == once

    def test_the_problems_it_shows_are_real(self, tree):
        """The example of the section Problems, made to happen."""
        shown = re.search(r"```\n(services/vllm-chat\.yaml.*?)```", PAGE.read_text(), re.DOTALL)
        assert shown
        text = 'id: vllm-chat\ndriver: exec\noptions: {command: [/bin/true]}\n\nport: "8000"\n\nnmae: x\n'
        tree.write("services/vllm-chat.yaml", text)
        assert shown[1].splitlines() == tree.errors()

    @pytest.mark.parametrize("number", [0, 1])
    def test_the_templates_it_shows_work(self, tree, number):
        source = re.findall(r"```jinja\n(.*?)```", PAGE.read_text(), re.DOTALL)[number]
        tree.service("a").write("templates/unit.j2", source)
        assert tree.load().problems == ()

    def test_the_command_it_shows_works(self, tree):
        assignment = re.search(r"GPUMODD_DRIVERS__VLLM__COMMAND='(.*?)'", PAGE.read_text())
        assert assignment
        loaded = tree.load(GPUMODD_DRIVERS__VLLM__COMMAND=assignment[1])
        assert loaded.settings.drivers.vllm.command == ("/opt/vllm/bin/vllm", "serve")


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


class TestModeFiles:
    """What `mode.create` and `mode.delete` write and remove."""

    def create(self, tree, id="night", name="", description="", services=()):
        return modes.write(tree.directory, id=id, name=name, description=description, services=services)

    def test_what_was_written_loads(self, tree):
        tree.service("a").service("b")
        path = self.create(tree, name='N "x": #1', description="one\ntwo: [", services=["b", "a"])
        assert path == tree.directory / "modes/night.yaml"
        assert tree.load().problems == ()
        mode = tree.load().catalog.modes["night"]
        assert mode == ModeSpec(id="night", name='N "x": #1', description="one\ntwo: [", services=("b", "a"))
        assert [file.name for file in path.parent.iterdir()] == ["night.yaml"]

    @given(name=WORDS, description=WORDS)
    @example(name="yes", description="0x10")
    @example(name="\x85", description="\u2028\ufeff\x7f\U0010ffff🦙\r")
    @example(name="~", description="--- a\n...\n")
    def test_any_words_come_back(self, tmp_path_factory, name, description):
        tree = Tree(tmp_path_factory.mktemp("modes"))
        self.create(tree, name=name, description=description)
        assert tree.load().problems == ()
        mode = tree.load().catalog.modes["night"]
        assert (mode.name, mode.description) == (name or "night", description)

    @pytest.mark.parametrize("id", ["null", "true", "1", "0x10", "1e3"])
    def test_ids_that_yaml_would_read_otherwise(self, tree, id):
        self.create(tree, id, services=[id])
        tree.service("x").write(f"services/{id}.yaml", f"id: '{id}'\ndriver: exec\noptions: {{command: [/bin/true]}}\n")
        assert tree.errors() == []
        assert tree.load().catalog.modes[id].services == (id,)

    @pytest.mark.parametrize("words", ["\0", "\ud800"])
    def test_words_that_no_file_can_hold(self, tree, words):
        with pytest.raises(OSError, match="a character that text cannot have"):
            self.create(tree, description=words)
        assert list(tree.directory.rglob("*")) == []

    def test_an_existing_mode_stays(self, tree):
        tree.service("a").mode("night", "a")
        with pytest.raises(FileExistsError):
            self.create(tree)
        assert tree.load().catalog.modes["night"].services == ("a",)
        assert [file.name for file in (tree.directory / "modes").iterdir()] == ["night.yaml"]

    def test_remove(self, tree):
        self.create(tree)
        modes.remove(tree.directory, "night")
        assert "night" not in tree.load().catalog.modes
        with pytest.raises(FileNotFoundError):
            modes.remove(tree.directory, "night")

    @pytest.mark.parametrize("id", ["../x", "a/b", "/x", "", ".", "A", "a\n", "a" * 65, "\0"])
    def test_ids_that_are_none_touch_nothing(self, tree, id):
        tree.write("x.yaml", "mine")
        for call in (lambda: self.create(tree, id), lambda: modes.remove(tree.directory, id)):
            with pytest.raises(OSError, match="is no id") as caught:
                call()
            assert caught.value.errno == errno.EINVAL
        assert [path.name for path in tree.directory.rglob("*")] == ["x.yaml"]

    def test_a_folder_that_cannot_be_written(self, tree):
        tree.write("modes", "a file")
        with pytest.raises(FileExistsError):
            self.create(tree)
