"""Lengths -> which sequences share a forward, or a row of one. The only packer; knows nothing of what the sequences are."""

from __future__ import annotations

from collections.abc import Sequence


def batches_within_budget(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of sequences that share a forward, a row each: neighbours in length, so with little padding.

    No batch holds more than `max_tokens` tokens, padding included, except that a sequence longer
    than that is a batch of its own. Longest first: what needs most memory fails first.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        # The first of a batch is its longest, the length that all are padded to.
        if batches and sizes[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def rows_within_budget(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of sequences that stand in one row, one behind the other: each row filled up to `max_tokens`.

    First fit, longest first; a sequence longer than `max_tokens` has a row of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = next((r for r, left in enumerate(room) if sizes[index] <= left), None)
        if fitting is None:
            rows.append([index])
            room.append(max_tokens - sizes[index])
        else:
            rows[fitting].append(index)
            room[fitting] -= sizes[index]
    return rows
