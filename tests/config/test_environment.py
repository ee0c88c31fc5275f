"""GPUMODD_<SECTION>__<KEY>: every key, the same judgement, and who said what."""

import pytest

from gpumodd.config import schema
from gpumodd.config.reference import variable

KEYS = [
    f"{section}.{key}"
    for section, info in schema.Settings.model_fields.items()
    for key in info.annotation.model_fields
    if section != "drivers"
]


def test_a_variable_wins_over_the_file(tree):
    tree.write("gpumodd.yaml", "policy:\n  drift: heal\n  quiesce_s: 2\n")
    loaded = tree.load(GPUMODD_POLICY__DRIFT="report")
    assert loaded.errors == ()
    assert (loaded.catalog.policy.drift, loaded.catalog.policy.quiesce_s) == ("report", 2.0)
    assert loaded.by_key["policy.drift"].source == "environment GPUMODD_POLICY__DRIFT"
    assert loaded.by_key["policy.quiesce_s"].source == "gpumodd.yaml:3:14"
    assert loaded.by_key["policy.placement"].source == "default"


def test_without_a_file(tree):
    loaded = tree.load(GPUMODD_UNITS__BACKEND="process", GPUMODD_POLICY__VRAM_LIMIT="80%")
    assert loaded.errors == ()
    assert loaded.settings.units.backend == "process"
    assert loaded.catalog.policy.vram_limit_percent == 80.0


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_variable(tree, key):
    before = tree.load().by_key[key]
    null = "/a/table" if key == "devices.table" else "80%"
    value = {str: before.value, int: "7", float: "7.5", bool: str(not before.value).lower(), type(None): null}[
        type(before.value)
    ]
    loaded = tree.load(**{variable(key): str(value)})
    assert loaded.errors == ()
    assert loaded.by_key[key].source == f"environment {variable(key)}"
    assert isinstance(before.value, str) or loaded.by_key[key].value != before.value


def test_lists_and_nested_keys(tree):
    tree.write("gpumodd.yaml", "drivers: {vllm: {command: [a, 1, c]}, fastapi: {command: [u]}}")
    tree.service("s", driver="vllm", model="m", options="{}")
    loaded = tree.load(GPUMODD_DRIVERS__VLLM__COMMAND="[/opt/vllm, 8]")
    assert loaded.errors == ()
    assert loaded.unit_files["s"].argv[:2] == ("/opt/vllm", "8")
    assert loaded.settings.drivers.fastapi.command == ("u",)


@pytest.mark.parametrize(
    "name, value, problem",
    [
        (
            "POLICY__DRFIT",
            "heal",
            '$GPUMODD_POLICY__DRFIT:1:1: policy.drfit: unknown key "drfit" (did you mean drift?)',
        ),
        (
            "POLICY__DRIFT",
            "no",
            "$GPUMODD_POLICY__DRIFT:1:1: policy.drift: cannot use \"no\": 'heal' or 'report' is needed",
        ),
        (
            "POLICY__VRAM_RESERVE_MIB",
            "'1'",
            '$GPUMODD_POLICY__VRAM_RESERVE_MIB:1:1: policy.vram_reserve_mib: cannot use "1"',
        ),
        ("POLICY__QUIESCE_S", "[", "$GPUMODD_POLICY__QUIESCE_S:1:2: policy.quiesce_s: cannot parse"),
        ("POLICY__QUIESCE_S", "[" * 99, "$GPUMODD_POLICY__QUIESCE_S:1:25: policy.quiesce_s: cannot use this: nested"),
        (
            "POLICY__QUIESCE_S",
            "1" * 20_000,
            "$GPUMODD_POLICY__QUIESCE_S:1:1: policy.quiesce_s: cannot use this: it is longer",
        ),
        ("POLICY__QUIESCE_S__DEEP", "1", "$GPUMODD_POLICY__QUIESCE_S__DEEP:1:1: policy.quiesce_s"),
        ("POLICY__", "1", '$GPUMODD_POLICY__:1:1: policy.: unknown key ""'),
        ("DRIVERS__VLM__COMMAND", "[x]", '$GPUMODD_DRIVERS__VLM__COMMAND:1:1: drivers.vlm: unknown key "vlm"'),
        (
            "DRIVERS__VLLM__COMMAND",
            "[a, ~]",
            "$GPUMODD_DRIVERS__VLLM__COMMAND:1:5: drivers.vllm.command[1]: cannot use null",
        ),
        (
            "DRIVERS__VLLM__COMMAND",
            "[./a]",
            "$GPUMODD_DRIVERS__VLLM__COMMAND:1:2: drivers.vllm.command[0]: cannot use the",
        ),
    ],
)
def test_a_problem_names_the_variable(tree, name, value, problem):
    errors = tree.errors(**{f"GPUMODD_{name}": value})
    assert len(errors) == 1
    assert errors[0].startswith(problem)


def test_an_empty_variable_leaves_the_default(tree):
    tree.write("gpumodd.yaml", "policy: {quiesce_s: 3}")
    loaded = tree.load(GPUMODD_POLICY__QUIESCE_S="", GPUMODD_POLICY__DRIFT=" ")
    assert loaded.errors == ()
    assert (loaded.catalog.policy.quiesce_s, loaded.catalog.policy.drift) == (0.0, "heal")


def test_a_section_that_does_not_exist_is_a_warning(tree):
    loaded = tree.load(GPUMODD_POLCY__DRIFT="heal")
    assert loaded.errors == ()
    assert [p.text() for p in loaded.warnings] == [
        "$GPUMODD_POLCY__DRIFT:1:1: polcy.drift: warning: this variable sets nothing (did you mean policy?)"
    ]


def test_other_variables_are_left_alone(tree):
    loaded = tree.load(
        GPUMODD_SOCKET="/x", GPUMODD_CONFIG_DIR="/y", GPUMODD_STATE_DIR="/z", GPUMODD_POLICY="x", HOME="/h"
    )
    assert loaded.problems == ()


def test_settings_that_are_no_mapping_stay_the_files_problem(tree):
    tree.write("gpumodd.yaml", "[]")
    assert tree.errors(GPUMODD_POLICY__DRIFT="heal") == ["gpumodd.yaml:1:1: .: cannot use a list: a mapping is needed"]


def test_a_section_of_the_wrong_kind_is_replaced(tree):
    tree.write("gpumodd.yaml", "policy: 3\n")
    assert tree.load(GPUMODD_POLICY__DRIFT="report").catalog.policy.drift == "report"
