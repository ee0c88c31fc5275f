"""Every benchmark runs, on both backends, and reports what it says it measures. How fast is not asked here."""

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.switching import SCENARIOS
from tests.support.sandbox import REPOSITORY

UNITS = {"×", "ms", "%", "calls/s", "% of a core", "/s", "MiB"}
MAY_BE_ANYTHING = "above the critical path"  # a difference: noise may turn it negative
MAY_BE_ZERO = {"% of a core", "/s"}  # in so short a time


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
    assert len(plots) == 4
    for plot in plots:
        assert f"({plot.name})" in (tmp_path / "report.md").read_text()
        bars = ElementTree.parse(plot).getroot().findall("{http://www.w3.org/2000/svg}rect")
        assert all(float(bar.get("width", "nan")) > 0 for bar in bars)


def test_an_unknown_benchmark_is_named():
    done = benchmarks("speed")
    assert done.returncode == 2
    assert "cannot find benchmark speed: there are startup" in done.stderr


def test_the_ideal_puts_together_what_may_overlap():
    fan, chain = SCENARIOS
    took = {"fan-out-a": 0.2, "fan-out-b": 0.7, "fan-in-a": 1.25, "fan-in-b": 0.95}
    ends = {key: end for key, (_, end) in fan.ideal(took).items()}
    assert ends["start", "fan-in-a"] == pytest.approx(0.2 + 0.3 + 1.25)
    assert ends["start", "fan-in-b"] == pytest.approx(0.7 + 0.2 + 0.95)
    took = {"chain-out-top": 0.1, "chain-out-low": 0.4, "chain-in-low": 0.75, "chain-in-top": 0.35}
    ends = {key: end for key, (_, end) in chain.ideal(took).items()}
    assert ends["release", "chain-out-low"] == pytest.approx(0.1 + 0.4 + 0.3)
    assert ends["start", "chain-in-top"] == pytest.approx(0.1 + 0.4 + 0.3 + 0.75 + 0.35)
