"""gpumodctl: the small client of gpumodd's socket."""
