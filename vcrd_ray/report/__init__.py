"""What a run tells about itself. Knows nothing of how it was computed."""
