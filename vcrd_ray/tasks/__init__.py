"""What an answer is. Knows nothing of models or Ray."""
