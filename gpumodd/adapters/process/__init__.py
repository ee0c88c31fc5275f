"""Services as plain subprocesses of the daemon: a supervisor in it, and one shim per service."""

from gpumodd.adapters.process.seen import SeenProcesses
from gpumodd.adapters.process.units import ProcessUnits

__all__ = ["ProcessUnits", "SeenProcesses"]
