"""Several sources -> one set of prompts with given shares. Pure; knows nothing of where problems come from."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence

from vcrd_ray.data.sources import Problem, Reject
from vcrd_ray.errors import DataError


def normalised(question: str) -> str:
    """A question as it is compared: canonical Unicode, runs of white space as one space. Letter case counts."""
    return " ".join(unicodedata.normalize("NFC", question).split())


def drop_duplicates(
    problems: Sequence[Problem], *, seen: dict[str, str] | None = None
) -> tuple[list[Problem], list[Reject]]:
    """The first of all problems with the same question and the same system turn, in order, and the others.

    Args:
        seen: ids by what is compared of what came before; what is kept is added to it.
    """
    seen = {} if seen is None else seen
    kept: list[Problem] = []
    rejects: list[Reject] = []
    for problem in problems:
        key = normalised(problem.question)
        if problem.system is not None:
            key = f"{problem.system}\0{key}"
        if key in seen:
            rejects.append(Reject(row=problem.id, reason=f"same question as {seen[key]}", kind="duplicate"))
        else:
            seen[key] = problem.id
            kept.append(problem)
    return kept, rejects


def mix(
    sources: Sequence[Sequence[Problem]], counts: Sequence[int], *, seed: int
) -> tuple[list[Problem], list[Reject]]:
    """`counts[i]` problems of source i, drawn without replacement, in a shuffled order, and the duplicates left out.

    A question of several sources belongs to the first one.

    Raises:
        DataError: a source has too few problems, or two sources give one id to different problems.
    """
    seen: dict[str, str] = {}
    owner: dict[str, int] = {}
    chosen: list[Problem] = []
    duplicates: list[Reject] = []
    for index, (source, count) in enumerate(zip(sources, counts, strict=True)):
        pool, left_out = drop_duplicates(source, seen=seen)
        duplicates += left_out
        if len(pool) < count:
            raise DataError(
                f"prompts.sources.{index} has {len(pool)} different problems ({len(left_out)} duplicates left out), but its"
                f" share of {sum(counts)} is {count}; lower prompts.count or the share, or read more rows of it"
            )
        for problem in pool:
            other = owner.setdefault(problem.id, index)
            if other != index:
                raise DataError(
                    f"prompts.sources.{other} and prompts.sources.{index} both have a problem {problem.id!r};"
                    " set prompts.name of one of them"
                )
        chosen += random.Random(f"mix-{seed}-{index}").sample(pool, count)
    random.Random(f"mix-{seed}").shuffle(chosen)
    return chosen, duplicates
