"""Drivers: what a runtime is. Data in, data out; no driver does I/O."""
