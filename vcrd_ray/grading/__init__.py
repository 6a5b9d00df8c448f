"""Whether a response is right: the one place that all of the program asks. Knows no models and no benchmarks."""
