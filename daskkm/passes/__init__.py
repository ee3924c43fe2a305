"""Dask: any X to blocks of tiles, reductions over them, memory, schedulers."""
