"""Makers of the shipped tiny world: `python -m jobs.tiny_world`."""
