"""What a run keeps on disk and in storage: directories, checkpoints, metrics, logs. Knows no models."""
