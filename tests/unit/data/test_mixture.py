"""Mixtures: shares, samples without replacement, duplicates."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vcrd_ray.config.data import JsonlPrompts, MixPrompts
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.mixture import drop_duplicates, mix
from vcrd_ray.data.problems import Problem, read_problems
from vcrd_ray.errors import DataError


def problems(name: str, count: int) -> list[Problem]:
    return [Problem(id=f"{name}-{i}", question=f"{name} {i}", solution=None) for i in range(count)]


def section(shares: list[float], count: int, **changes: Any) -> MixPrompts:
    sources = [{"share": share, "prompts": {"type": "tiny", "seed": i}} for i, share in enumerate(shares)]
    return MixPrompts.model_validate({"sources": sources, "count": count, **changes})


@given(parts=st.lists(st.integers(1, 50), min_size=2, max_size=6), count=st.integers(300, 100_000))
def test_counts_are_the_shares_to_rounding_and_sum_to_the_whole(parts: list[int], count: int) -> None:
    shares = [part / sum(parts) for part in parts]
    counts = section(shares, count).counts()
    assert sum(counts) == count
    assert all(abs(number - share * count) < 1 + 1e-3 for number, share in zip(counts, shares, strict=True))


def test_a_share_that_floating_point_makes_a_hair_small_is_whole() -> None:
    assert section([0.29, 0.57, 0.14], 100).counts() == [29, 57, 14]


@given(seed=st.integers(0, 1000), counts=st.tuples(st.integers(1, 20), st.integers(1, 30)))
def test_a_mixture_is_a_seeded_sample_without_replacement(seed: int, counts: tuple[int, int]) -> None:
    sources = [problems("a", 20), problems("b", 30)]
    chosen, rejects = mix(sources, counts, seed=seed)
    assert mix(sources, counts, seed=seed)[0] == chosen and not rejects
    ids = [problem.id for problem in chosen]
    assert len(set(ids)) == len(ids) and set(chosen) <= {p for source in sources for p in source}
    assert Counter(i[0] for i in ids) == {"a": counts[0], "b": counts[1]}


def test_another_seed_is_another_sample_in_another_order() -> None:
    sources = [problems("a", 40), problems("b", 40)]
    first, second = (mix(sources, (20, 20), seed=seed)[0] for seed in (0, 1))
    assert set(first) != set(second)
    assert [p.id[0] for p in first] not in (sorted(p.id[0] for p in first), sorted(p.id[0] for p in first)[::-1])


def test_the_first_of_equal_questions_stays() -> None:
    texts = ["what  is\n1?", " what is 1? ", "What is 1?", "caf\u00e9", "cafe\u0301", "x\u00b2", "x2"]
    made = [Problem(id=str(i), question=text, solution=None) for i, text in enumerate(texts)]
    kept, rejects = drop_duplicates(made)
    assert [p.id for p in kept] == ["0", "2", "3", "5", "6"]
    assert [(r.row, r.reason, r.kind) for r in rejects] == [
        ("1", "same question as 0", "duplicate"),
        ("4", "same question as 3", "duplicate"),
    ]


def test_a_question_of_two_sources_is_drawn_once() -> None:
    same = [Problem(id=f"b-{i}", question=f"a {i}", solution=None) for i in range(5)]
    chosen, rejects = mix([problems("a", 10), [*same, *problems("c", 5)]], (10, 5), seed=0)
    assert len({p.question for p in chosen}) == 15 and [r.row for r in rejects] == [p.id for p in same]


def test_a_share_that_a_source_cannot_fill_says_the_numbers() -> None:
    with pytest.raises(DataError, match=r"sources\.1 has 10 different problems \(10 duplicates.*share of 21 is 11"):
        mix([problems("a", 10), [*problems("a", 10), *problems("b", 10)]], (10, 11), seed=0)


def test_two_sources_with_one_id_are_refused() -> None:
    other = [Problem(id="a-3", question="another", solution=None)]
    with pytest.raises(DataError, match=r"sources\.0 and prompts\.sources\.1 both have a problem 'a-3'.*prompts\.name"):
        mix([problems("a", 5), other], (1, 1), seed=0)


@pytest.mark.parametrize(
    ("shares", "count", "said"),
    [([0.7, 0.2], 100, "sum to 0.9"), ([0.999, 0.001], 100, r"sources\.1: share 0.001 of count 100 is no prompt")],
)
def test_shares_that_make_no_mixture_are_refused(shares: list[float], count: int, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        section(shares, count)


def test_files_and_the_tiny_world_mix_with_their_own_ids(tmp_path: Path) -> None:
    for name in ("one", "two"):
        rows = [{"question": f"{name} {i % 90}", "answer": i} for i in range(100)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    files = [{"type": "jsonl", "path": tmp_path / f"{name}.jsonl", "max_reject_share": 0.02} for name in ("one", "two")]
    sources = [
        {"share": 0.5, "prompts": files[0]},
        {"share": 0.3, "prompts": files[1] | {"shuffle_seed": 1, "count": 60}},
        {"share": 0.2, "prompts": {"type": "tiny", "seed": 4, "count": 30}},
    ]
    chosen = MixPrompts.model_validate({"sources": sources, "count": 80, "shuffle_seed": 5})
    found, rejects = read_problems(chosen, WorldConfig())
    assert Counter(p.id.split("-")[0] for p in found) == {"one": 40, "two": 24, "tiny": 16}
    assert len({p.id for p in found}) == len({p.question for p in found}) == 80
    originals = {p.id: p for file in files for p in read_problems(JsonlPrompts(**file), WorldConfig())[0]}
    assert all(originals[p.id] == p for p in found if not p.id.startswith("tiny"))
    kinds = Counter(r.kind for r in rejects)
    assert kinds["duplicate"] >= 10 and 1 <= kinds["not_json"] <= 2
