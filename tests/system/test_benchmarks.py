"""Every benchmark runs, on both backends, and reports what it says it measures. How fast is not asked here."""

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.scenarios import CHAIN, SCENARIOS, SIZES, mixed
from tests.support.sandbox import REPOSITORY

UNITS = {"", "×", "ms", "%", "calls/s", "% of a core", "/s", "MiB", "MiB/h"}
MAY_BE_ANYTHING = ("above the lower bound", "growth of")  # differences: noise may turn them negative
MAY_BE_ZERO = {"% of a core", "/s", "MiB/h"}  # in so short a time


def benchmarks(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.real
@pytest.mark.usefixtures("sandbox_possible")
def test_every_benchmark_reports(tmp_path: Path):
    done = benchmarks("--quick", "--imports", "--out", str(tmp_path), "--json", str(tmp_path / "figures"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "figures").read_text())
    figures = report["figures"]
    assert report["quick"]
    assert {figure["benchmark"] for figure in figures} == set(BENCHMARKS)
    names = [figure["name"] for figure in figures]
    assert len(set(names)) == len(names)
    for figure in figures:
        spread = figure["spread"]
        values = [spread[key] for key in ("low", "median", "high")]
        assert all(math.isfinite(value) for value in values), figure
        assert spread["low"] <= spread["high"], figure
        assert figure["unit"] in UNITS, figure
        if not figure["name"].startswith(MAY_BE_ANYTHING):
            assert min(values) >= 0, figure
            assert spread["median"] > 0 or figure["unit"] in MAY_BE_ZERO, figure
        assert figure["met"] is None if figure["goal"] is None else isinstance(figure["met"], bool)
        assert figure["name"] in done.stdout
        assert f"- *{figure['name']}*: {figure['how']}" in (tmp_path / "report.md").read_text()
    for benchmark in ("reaction", "switching", "idle"):
        mine = [figure["name"] for figure in figures if figure["benchmark"] == benchmark]
        assert {name.rpartition(", ")[2] for name in mine} == {"systemd", "process"}
    assert "gpumodctl.cli" in done.stdout
    plots = sorted(tmp_path.glob("*.svg"))
    assert len(plots) == 3 * 2 + 2  # three timelines on two backends, and two over sizes
    for plot in plots:
        assert f"({plot.name})" in (tmp_path / "report.md").read_text()
        bars = ElementTree.parse(plot).getroot().findall("{http://www.w3.org/2000/svg}rect")
        assert all(float(bar.get("width", "nan")) > 0 for bar in bars)


def test_an_unknown_benchmark_is_named():
    done = benchmarks("speed")
    assert done.returncode == 2
    assert "cannot find benchmark speed: there are startup" in done.stderr


def test_the_bound_puts_together_what_may_overlap():
    pair = mixed(4)
    took = {"mix4-out-0": 0.25, "mix4-out-1": 0.5, "mix4-in-0": 1.5, "mix4-in-1": 0.7}
    ends = {key: end for key, (_, end) in pair.ideal(took).items()}
    assert ends["start", "mix4-in-0"] == pytest.approx(0.25 + 0.3 + 1.5)
    assert ends["start", "mix4-in-1"] == pytest.approx(0.5 + 0.2 + 0.7)
    took = {"chain-out-top": 0.1, "chain-out-low": 0.4, "chain-in-low": 0.75, "chain-in-top": 0.35}
    ends = {key: end for key, (_, end) in CHAIN.ideal(took).items()}
    assert ends["release", "chain-out-low"] == pytest.approx(0.1 + 0.4 + 0.3)
    assert ends["start", "chain-in-top"] == pytest.approx(0.1 + 0.4 + 0.3 + 0.75 + 0.35)


def test_the_bound_gives_memory_to_whom_the_rest_waits_for_longest():
    pair = mixed(4)
    took = {"mix4-out-0": 0.9, "mix4-out-1": 0.1, "mix4-in-0": 1.5, "mix4-in-1": 0.7}
    assert pair.gates(took) == {"mix4-in-0": {"mix4-out-1"}, "mix4-in-1": {"mix4-out-0"}}


def test_each_size_has_as_many_services_and_all_fit():
    for size in SIZES:
        scenario = mixed(size)
        assert scenario.size == size
    for scenario in SCENARIOS:
        for side in (scenario.leaving, scenario.coming):
            assert sum(service.vram_mib for service in side.values()) <= 24_000
        kinds = [service.needs for service in scenario.coming.values()]
        assert scenario.size < 8 or (any(kinds) and not all(kinds))
