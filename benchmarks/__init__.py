"""Benchmarks: what the daemon and its client cost, against a baseline measured in the same run.

`make bench` runs them all, prints a table and writes `report.md`. A figure is a median over interleaved
repetitions; its goal is what the project promises, and a figure that misses it is reported, never hidden.
"""
