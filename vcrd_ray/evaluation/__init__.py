"""How good a model is, with an interval. Knows nothing of Ray."""
