"""Benchmarks: `python -m jobs.bench NAME`."""
