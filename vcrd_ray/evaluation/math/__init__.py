"""Mathematical answers: benchmark items, prompts, and whether a reply is right. Knows no torch, no Ray and no engine."""
