"""Which of several responses to learn from, told before any training from log-probabilities under the student.

    steps.py       response -> steps
    candidates.py  rollouts directory -> responses to score
    windows.py     documents -> log-probability and rank of their tokens, many documents a row
    scores.py      those -> one score a response: LALP, ASLEC-DROP, naturalness, RSR, correctness, teacher steps
    scoring.py     config -> models, and their scores of rollouts
    choose.py      scores -> responses and prompts to keep, and the rollouts directory of them
    select.py      a rollouts directory -> a selected one, block by block
    ranking.py     scores of several teachers' responses to the same prompts -> the teachers in order
    rank.py        rollouts of several teachers -> their ranking, on disk
    tables.py      what a person is shown

Knows nothing of Ray.
"""
