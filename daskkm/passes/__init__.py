"""Dask: blocks of tiles from any X, passes over tiles, memory, schedulers."""
