"""The algorithm: options, initial centroids, Lloyd iterations, models, metrics."""
