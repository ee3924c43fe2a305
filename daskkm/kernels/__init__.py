"""Compiled kernels: labels, sums, distances and bounds of one block of tiles."""
