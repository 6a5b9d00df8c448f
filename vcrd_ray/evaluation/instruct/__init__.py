"""Instruction following: questions, and win rates by a judge behind a chat endpoint. Knows no torch, no Ray, no engine."""
