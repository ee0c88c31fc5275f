"""gpumodd: the daemon that decides which model servers own this machine's GPUs."""

__version__ = "0.1.0"
