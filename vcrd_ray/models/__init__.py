"""Checkpoints, tokenizers, the student and its optimizer. Knows no losses, no judges and no Ray."""
