"""NVIDIA GPUs through NVML. Owns pynvml: its errors and its quirks stop here."""

from gpumodd.adapters.nvml.devices import NvmlDevices, installed

__all__ = ["NvmlDevices", "installed"]
