"""Fine-tuning and distillation: the loops, what they ask for, and who runs them. Knows no Ray."""
