"""Distillation in this process with regenerated responses: who learns from which version, and what must be equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import TEACHER
from vcrd_ray.config import Config
from vcrd_ray.config.methods import with_method
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.engines.loading import load_versioned_engine
from vcrd_ray.errors import SyncError
from vcrd_ray.models.backend.torch import torch_backend
from vcrd_ray.training import assemble
from vcrd_ray.training.on_policy.writer import LocalResponses, ResponseWriter, WriterSettings
from vcrd_ray.training.signals import LocalSignals
from vcrd_ray.types import RolloutPair, UpdateReport

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
COIN = {"weighting": {"type": "uniform"}, "mixing": {"start": 0.5, "step": 0.0}}
NUM_UPDATES = 8  # two passes and two thirds over the pairs


@pytest.fixture(scope="module")
def teacher() -> HFEngine:
    return HFEngine(TEACHER, dtype="float32", device=CPU)


class Run:
    """Uniform weights, so that no judge is needed; everything else as in any run."""

    def __init__(
        self,
        folder: Path,
        pairs: list[RolloutPair],
        teacher: HFEngine,
        refresh: dict[str, Any],
        *,
        method: str = "uniform",
        **distill: Any,
    ) -> None:
        small: dict[str, Any] = {
            "batch_size": 8,
            "micro_batch_size": 4,
            "num_updates": NUM_UPDATES,
            "optim": {"lr": 1e-2, "warmup_ratio": 0.0},
            "lora": {"r": 4, "alpha": 16},
        }
        config = Config.model_validate(
            {
                "run": {"dir": folder},
                "distill": small | distill,
                "rollouts": {"refresh": refresh, "sampling": {"max_new_tokens": 24}},
            }
        )
        # An objective given whole is taken as it is.
        self.config = config if "objective" in distill else with_method(config, method)
        section = self.config.distill
        student = assemble.student_to_distil(self.config, CPU)
        self.batches, self.backend = assemble.make_batches(self.config, pairs, student, torch_backend)
        self.folder = folder
        engine = load_versioned_engine(self.config.rollouts.refresh, self.config.student, lora=section.lora)
        self.versions = assemble.make_versions(
            self.config,
            backend=self.backend,
            batches=self.batches,
            source=LocalResponses(ResponseWriter(engine, WriterSettings.of(self.config))),
            run_dir=folder,
            pairs=pairs,
        )
        self.publisher, self.on_policy = self.versions.publisher, self.versions.on_policy
        self.reports: list[UpdateReport] = []
        self.distiller = assemble.make_distiller(
            self.config,
            backend=self.backend,
            batches=self.batches,
            signals=LocalSignals(teacher=teacher, judge=None, request=assemble.make_teacher_request(self.config)),
            teacher=assemble.Teacher.of(self.config, student.tokenizer),
            versions=self.versions,
        )

    def updates(self, first: int = 0, stop: int = NUM_UPDATES) -> Run:
        self.distiller.run(first_update=first, stop=stop, on_update=self.reports.append)
        return self

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.backend.student.named_parameters() if p.requires_grad}

    def kept(self) -> list[tuple[int, int, str, list[int]]]:
        rows = [
            row for file in sorted(self.folder.glob("responses/*.parquet")) for row in pq.read_table(file).to_pylist()
        ]
        return [(row["update"], row["student_version"], row["pair"], row["ids"]) for row in rows]


def assert_bitwise(left: Run, right: Run) -> None:
    ours, theirs = left.weights(), right.weights()
    assert ours.keys() == theirs.keys() and all(ours[n].equal(theirs[n]) for n in ours)
    assert [r.metrics["loss"] for r in left.reports][-3:] == [r.metrics["loss"] for r in right.reports][-3:]


def test_each_update_learns_from_the_version_that_the_rule_names(
    tmp_path: Path, pairs: list[RolloutPair], teacher: HFEngine
) -> None:
    run = Run(tmp_path, pairs, teacher, {"every": 2, "ahead": 1}).updates()
    rule = run.on_policy.staleness
    staleness = [report.metrics["rollouts/staleness"] for report in run.reports]
    assert staleness == [update - rule.version(update) for update in range(NUM_UPDATES)]
    assert {(update, version) for update, version, _, _ in run.kept()} == {
        (update, rule.version(update)) for update in range(NUM_UPDATES) if rule.version(update) > 0
    }
    for report in run.reports[3:]:
        assert report.metrics["rollouts/renewed"] == 1 and report.metrics["rollouts/canary_difference"] < 1e-3
    # Each pair of an update has its response on disk, once.
    of_update = sorted(pair for update, _, pair, _ in run.kept() if update == 5)
    assert of_update == sorted(pair.id for pair in run.batches.pairs_of(5, None))


def test_new_responses_change_what_is_learnt(tmp_path: Path, pairs: list[RolloutPair], teacher: HFEngine) -> None:
    offline = Run(tmp_path / "offline", pairs, teacher, {"every": 0}).updates()
    online = Run(tmp_path / "online", pairs, teacher, {"every": 1, "ahead": 0}).updates()
    assert offline.reports[0].metrics["loss"] == online.reports[0].metrics["loss"], (
        "version 0 is the rollouts directory"
    )
    assert offline.reports[-1].metrics["loss"] != online.reports[-1].metrics["loss"]
    assert [r.metrics["rollouts/staleness"] for r in online.reports] == [0.0] * NUM_UPDATES
    assert "rollouts/renewed" not in offline.reports[-1].metrics


@pytest.mark.parametrize("overlap", [True, False])
def test_prefetch_and_overlap_change_nothing(
    tmp_path: Path, pairs: list[RolloutPair], teacher: HFEngine, overlap: bool
) -> None:
    refresh = {"every": 1, "ahead": 1}
    plain = Run(tmp_path / "plain", pairs, teacher, refresh, prefetch=1).updates()
    assert_bitwise(plain, Run(tmp_path / "other", pairs, teacher, refresh, prefetch=7, overlap=overlap).updates())


@pytest.mark.parametrize("share", [1.0, "decreasing", 0.5])
def test_stopped_and_gone_on_with_equals_never_stopped(
    tmp_path: Path, pairs: list[RolloutPair], teacher: HFEngine, share: float | str
) -> None:
    refresh = {"every": 2, "ahead": 2, "share": share}
    whole = Run(tmp_path / "whole", pairs, teacher, refresh).updates()
    first = Run(tmp_path / "parts", pairs, teacher, refresh).updates(stop=5)
    state = tmp_path / "state"
    state.mkdir()
    first.backend.save(state)
    first.publisher.prune(first.on_policy.kept(5, [5]))
    # What was written for updates that are done again, by a run that was killed later, is forgotten.
    first.updates(first=5, stop=6)
    second = Run(tmp_path / "parts", pairs, teacher, refresh)
    second.backend.load(state)
    second.updates(first=5)
    assert_bitwise(second, whole)
    assert second.kept() == whole.kept()


def test_a_version_that_is_gone_stops_the_run_that_needs_it(
    tmp_path: Path, pairs: list[RolloutPair], teacher: HFEngine
) -> None:
    run = Run(tmp_path, pairs, teacher, {"every": 2, "ahead": 2}).updates(stop=5)
    run.publisher.prune(run.on_policy.kept(NUM_UPDATES, []))
    with pytest.raises(SyncError, match="no version of the student there"):
        run.updates(first=5)


def test_what_is_not_written_anew_is_the_last_that_was(
    tmp_path: Path, pairs: list[RolloutPair], teacher: HFEngine
) -> None:
    run = Run(tmp_path, pairs, teacher, {"every": 1, "ahead": 0, "share": 0.5})
    learnt: list[tuple[int, RolloutPair]] = []
    original = run.backend.forward
    asked = run.on_policy.take

    def take(update: int, micro: int) -> Any:
        batch = asked(update, micro)
        if micro == 0:
            learnt.extend((update, pair) for m in (0, 1) for pair in asked(update, m).result().pairs)
        return batch

    run.on_policy.take = take  # type: ignore[method-assign]
    run.updates()
    assert run.backend.forward == original
    offline = {pair.id: pair.student_ids.tolist() for pair in pairs}
    written: dict[str, list[tuple[int, int, list[int]]]] = {}
    for update, version, pair, ids in run.kept():
        written.setdefault(pair, []).append((update, version, ids))
    seen = {"new": 0, "again": 0, "offline": 0}
    for update, pair in sorted({(u, p.id): (u, p) for u, p in learnt}.values(), key=lambda found: found[0]):
        before = [(v, ids) for u, v, ids in written.get(pair.id, []) if u <= update]
        if before:
            assert (pair.student_version, pair.student_ids.tolist()) == before[-1]
            seen["new" if any(u == update for u, _, _ in written[pair.id]) else "again"] += 1
        else:
            assert pair.student_version == 0 and pair.student_ids.tolist() == offline[pair.id]
            seen["offline"] += 1
    assert min(seen.values()) > 0


def test_the_share_written_anew_can_decrease_over_the_run(
    tmp_path: Path, pairs: list[RolloutPair], teacher: HFEngine
) -> None:
    run = Run(tmp_path, pairs, teacher, {"every": 1, "ahead": 0, "share": "decreasing"}).updates()
    written = [sum(update == u for update, _, _, _ in run.kept()) for u in range(NUM_UPDATES)]
    assert sum(written[1:4]) > sum(written[-3:]) > 0


def test_one_response_a_pair_is_written_only_where_it_is_the_students(
    tmp_path: Path, pairs: list[RolloutPair], teacher: HFEngine
) -> None:
    """GKD's lambda as a coin: a fixed probability, nothing held out."""
    run = Run(tmp_path, pairs, teacher, {"every": 1, "ahead": 0}, objective=COIN)
    run.updates()
    assert not run.batches.held_out
    for update in range(1, NUM_UPDATES):
        of_student = {pair.id for pair in run.batches.pairs_of(update, 0.5) if len(pair.student_ids)}
        assert {pair for u, _, pair, _ in run.kept() if u == update} == of_student
    assert 0 < len(run.kept()) < 8 * (NUM_UPDATES - 1)


def test_token_means_count_the_new_responses(tmp_path: Path, pairs: list[RolloutPair], teacher: HFEngine) -> None:
    lora = {"r": 4, "alpha": 16, "dropout": 0.0}
    losses = [
        [
            report.metrics["loss"]
            for report in Run(
                tmp_path / str(size), pairs, teacher, {"every": 1}, method="gkd", micro_batch_size=size, lora=lora
            )
            .updates(stop=4)
            .reports
        ]
        for size in (2, 8)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_offline_pairs_are_left_as_they_are(tmp_path: Path, pairs: list[RolloutPair], teacher: HFEngine) -> None:
    before = [replace(pair) for pair in pairs]
    Run(tmp_path, pairs, teacher, {"every": 1}).updates(stop=3)
    assert all(a.student_ids is b.student_ids and b.student_version == 0 for a, b in zip(before, pairs, strict=True))
