"""Read and write Zarr on disk: chunks, stores, labels, models, checkpoints."""
