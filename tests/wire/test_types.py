"""The published fields, by name: scripts live by them."""

from typing import get_args

import msgspec
import pytest

from gpumodd.wire import types as t

PUBLISHED = {
    t.Status: "mode desired_mode state devices services operation problems",
    t.Device: "uuid index name total_mib used_mib foreign_mib committed_mib free_mib sampled_at processes",
    t.DeviceProcess: "pid used_mib service",
    t.Service: "id name driver model aliases depends_on phase mode_member unit pid port devices vram_mib vram_source "
    "vram_observed_mib sleep_level since problem",
    t.Mode: "id name description services vram_mib active",
    t.Simulation: "fits devices services steps blocked alternatives",
    t.SimulationDevice: "uuid total_mib needed_mib headroom_mib",
    t.Operation: "id kind target state started woken stopped slept kept steps error created_at finished_at seconds",
    t.Step: "id verb service after state why started_at finished_at error",
    t.OperationError: "code message hint details log",
    t.Problem: "code service device message hint since details",
    t.Hello: "protocol version pid started_at capabilities",
    t.Reload: "added changed removed unchanged errors",
    t.Event: "cursor at topic data",
    t.Subscription: "cursor status",
}


@pytest.mark.parametrize("struct", PUBLISHED, ids=lambda struct: struct.__name__)
def test_every_published_field_is_there(struct):
    assert set(PUBLISHED[struct].split()) <= set(struct.__struct_fields__)


def test_defaults_are_sent_too():
    step = t.Step(id="1", verb="start")
    assert set(msgspec.to_builtins(step)) == set(t.Step.__struct_fields__)


def test_unknown_fields_are_ignored_by_clients():
    known = msgspec.to_builtins(t.Mode(id="a", name="", description="", services=[], vram_mib=None, active=False))
    assert msgspec.convert(known | {"colour": "blue"}, t.Mode).id == "a"


WORDS = {
    "Phase": "stopped starting loading ready degraded sleeping waking stopping releasing backoff failed unknown",
    "OperationState": "pending running succeeded failed rolled_back cancelled",
    "OperationKind": "switch start stop restart sleep wake heal restore",
    "StepState": "pending running done failed skipped cancelled",
    "StepVerb": "inspect drain stop sleep wait_release start wake wait_ready",
    "DaemonState": "switching converged blocked degraded",
    "VramSource": "declared estimated learned",
}


@pytest.mark.parametrize("name", WORDS)
def test_the_published_words(name):
    assert set(get_args(getattr(t, name))) == set(WORDS[name].split())


def test_an_operation_is_ended_or_open():
    assert set(get_args(t.OperationState)) - t.ENDED == {"pending", "running"}
