"""The method: divergences, weights, the loss, the schedule. Knows no models, no judges, no files and no Ray."""
