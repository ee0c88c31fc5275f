"""The words that fields of the wire may hold. Published with `types`."""

from typing import Literal

Phase = Literal[
    "stopped",
    "starting",
    "loading",
    "ready",
    "degraded",
    "sleeping",
    "waking",
    "stopping",
    "releasing",
    "backoff",
    "failed",
    "unknown",
]
DaemonState = Literal["switching", "converged", "blocked", "degraded"]
OperationKind = Literal["switch", "start", "stop", "restart", "sleep", "wake", "heal", "restore"]
OperationState = Literal["pending", "running", "succeeded", "failed", "rolled_back", "cancelled"]
StepVerb = Literal["inspect", "drain", "stop", "sleep", "wait_release", "start", "wake", "wait_ready"]
StepState = Literal["pending", "running", "done", "failed", "skipped", "cancelled"]
VramSource = Literal["declared", "estimated", "learned"]
Topic = Literal["daemon", "config", "mode", "operation", "service", "device", "problem"]

ENDED: frozenset[str] = frozenset({"succeeded", "failed", "rolled_back", "cancelled"})
