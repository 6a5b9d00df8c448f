"""Problems and rollouts on disk. Knows nothing of models or Ray."""
