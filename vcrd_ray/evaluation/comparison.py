"""Two evaluations of the same benchmarks -> paired figures, and the questions whose verdict changed. Knows no models."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.answers import Answer, Graded
from vcrd_ray.evaluation.statistics import PairedDifference, paired_difference
from vcrd_ray.runs.files import read_jsonl


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A question that one of the two gets right more often than the other."""

    id: str
    question: str
    gold: str
    responses: tuple[str, str]
    """The first sample of each."""
    predictions: tuple[str | None, str | None]
    shares: tuple[float, float]
    """Share of right answers of each."""


@dataclass(frozen=True, kw_only=True)
class SetComparison:
    """One metric of one benchmark."""

    suite: str
    name: str
    metric: str
    shares: tuple[float, float]
    """Mean over questions of each."""
    paired: PairedDifference
    changed: tuple[Changed, ...]

    @property
    def warning(self) -> str | None:
        """What to think of before the difference is believed; None where it is larger than the set's noise."""
        paired = self.paired
        if paired.low <= 0 <= paired.high:
            return (
                f"{paired.num_questions} questions cannot tell these two apart: such a set finds differences from about"
                f" {100 * paired.detectable:.1f} points on"
            )
        if abs(paired.difference) < paired.detectable:
            return f"found with luck: {paired.num_questions} questions are few for a difference of this size"
        return None


def compare_evaluations(first: Path, second: Path, *, confidence: float) -> list[SetComparison]:
    """Every metric of every set that both folders hold, on the questions that they share.

    Raises:
        DataError: a folder is no evaluation, they have no set in common, or a set's questions differ.
    """
    sets = [_sets(first), _sets(second)]
    common = sorted(sets[0] & sets[1])
    if not common:
        raise DataError(
            f"{first} and {second} have no benchmark in common; give folders that jobs.evaluate --suites wrote"
        )
    return [found for suite, name in common for found in _compare_set(first, second, suite, name, confidence)]


def _sets(folder: Path) -> set[tuple[str, str]]:
    found = {(path.parent.parent.name, path.parent.name) for path in folder.glob("*/*/questions.jsonl")}
    if not found:
        raise DataError(f"{folder}: no benchmark in it; give a folder that jobs.evaluate --suites wrote")
    return found


def _compare_set(first: Path, second: Path, suite: str, name: str, confidence: float) -> list[SetComparison]:
    folders = (first / suite / name, second / suite / name)
    questions = [{row["id"]: row for row in read_jsonl(folder / "questions.jsonl")} for folder in folders]
    if questions[0] != questions[1]:
        raise DataError(
            f"{suite} {name}: the two were asked different questions; evaluate both on the same file and limit"
        )
    graded = [_graded(folder) for folder in folders]
    for folder, found in zip(folders, graded, strict=True):
        missing = questions[0].keys() - found.keys()
        if missing:
            raise DataError(f"{folder}: {len(missing)} questions have no verdict yet; finish jobs.evaluate first")
    texts = [_texts(folder) for folder in folders]
    shared = [
        metric
        for metric in next(iter(graded[0].values()))[0].correct
        if metric in next(iter(graded[1].values()))[0].correct
    ]
    comparisons = []
    for metric in shared:
        shares = [{id: _share(rows, metric) for id, rows in found.items()} for found in graded]
        ids = list(questions[0])
        paired = paired_difference([shares[0][i] for i in ids], [shares[1][i] for i in ids], confidence=confidence)
        changed = tuple(
            Changed(
                id=id,
                question=questions[0][id]["question"],
                gold=questions[0][id]["gold"],
                responses=(texts[0].get(id, ""), texts[1].get(id, "")),
                predictions=(graded[0][id][0].prediction, graded[1][id][0].prediction),
                shares=(shares[0][id], shares[1][id]),
            )
            for id in ids
            if shares[0][id] != shares[1][id]
        )
        means = tuple(sum(found[i] for i in ids) / len(ids) for found in shares)
        comparisons.append(
            SetComparison(
                suite=suite,
                name=name,
                metric=metric,
                shares=(means[0], means[1]),
                paired=paired,
                changed=changed,
            )
        )
    return comparisons


def _graded(folder: Path) -> dict[str, list[Graded]]:
    found: dict[str, list[Graded]] = defaultdict(list)
    for file in sorted((folder / "grades").glob("*.jsonl")):
        for row in read_jsonl(file):
            graded = Graded.model_validate(row)
            found[graded.id].append(graded)
    return {id: sorted(rows, key=lambda row: row.sample) for id, rows in found.items()}


def _texts(folder: Path) -> dict[str, str]:
    rows = (row for file in sorted((folder / "answers").glob("*.jsonl")) for row in read_jsonl(file))
    answers = (Answer.model_validate(row) for row in rows)
    return {answer.id: answer.text for answer in answers if answer.sample == 0}


def _share(rows: list[Graded], metric: str) -> float:
    return sum(row.correct[metric] for row in rows) / len(rows)
