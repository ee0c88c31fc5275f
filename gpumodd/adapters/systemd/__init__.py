"""The user manager of systemd: units, jobs, cgroups and the journal. The only home of sdbus."""

from gpumodd.adapters.systemd.units import Pace, SystemdUnits

__all__ = ["Pace", "SystemdUnits"]
