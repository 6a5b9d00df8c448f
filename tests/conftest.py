"""What several test modules need: rollout pairs of the tiny world, on disk and in memory."""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A test that forgot to start its Ray fails at once, instead of waiting for room on one that Ray made up.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

from tests.leftovers import Session
from vcrd_ray.config.data import PromptSection, SamplingSection
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.manifest import Manifest, ids_digest
from vcrd_ray.data.problems import Problem, make_examples, read_problems, template_fingerprint, tokenize_prompts
from vcrd_ray.data.rollouts import open_rollouts, write_block
from vcrd_ray.models.checkpoint_files import load_tokenizer, model_fingerprint, resolve_model, tokenizer_fingerprint
from vcrd_ray.types import Rollout, RolloutPair

# Small models gain nothing from more, and several suites may run on one machine.
torch.set_num_threads(1)

TEACHER, STUDENT = "tiny:teacher", "tiny:student-base"
_SESSION = pytest.StashKey[Session]()


def pytest_configure(config: pytest.Config) -> None:
    # Processes of pytest-xdist are part of the session that started them.
    if not hasattr(config, "workerinput"):
        config.stash[_SESSION] = Session()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """A run of tests that leaves something behind has failed."""
    result = yield
    ours = session.config.stash.get(_SESSION, None)
    if ours is not None:
        left = ours.left_behind()
        if left:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        terminal = session.config.get_terminal_writer()
        for line in left:
            terminal.line(f"left behind: {line}", red=True)
        failed = session.exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        ours.close(keep=failed)
        if failed:
            terminal.line(f"temporary files of this run are kept in {ours.directory}")
    return result


def _corrupted(text: str, rng: random.Random) -> str:
    """The same solution with one wrong digit, as a weak student would write it."""
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    at = rng.choice(digits)
    return text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]


def make_pairs(count: int) -> list[RolloutPair]:
    """Right solutions as teacher's rollouts, corrupted ones as student's."""
    from vcrd_ray.config.data import TinyPrompts

    tokenizer = load_tokenizer(resolve_model(STUDENT))
    problems, _ = read_problems(TinyPrompts(seed=2, count=count), WorldConfig())
    rng = random.Random(0)
    wrong = [Problem(id=p.id, question=p.question, solution=_corrupted(p.solution or "", rng)) for p in problems]
    right, _ = make_examples(problems, tokenizer, max_length=1000)
    other, _ = make_examples(wrong, tokenizer, max_length=1000)
    return [
        RolloutPair(
            id=p.id,
            question=p.question,
            prompt_ids=r.prompt_ids,
            teacher_ids=r.response_ids,
            student_ids=w.response_ids,
        )
        for p, r, w in zip(problems, right, other, strict=True)
    ]


def write_rollouts(directory: Path, count: int) -> Path:
    """The same pairs as a rollouts directory of the tiny teacher."""
    from vcrd_ray.config.data import TinyPrompts

    pairs = make_pairs(count)
    tokenizer = load_tokenizer(resolve_model(STUDENT))
    problems, _ = read_problems(TinyPrompts(seed=2, count=count), WorldConfig())
    prompts, _ = tokenize_prompts(problems, tokenizer, max_length=1000)
    manifest = Manifest(
        teacher=model_fingerprint(resolve_model(TEACHER)),
        student=model_fingerprint(resolve_model(STUDENT)),
        tokenizer=tokenizer_fingerprint(tokenizer),
        template=template_fingerprint(PromptSection(), tokenizer),
        prompt=PromptSection(),
        seeds=(0,),
        sampling=SamplingSection(),
        samples=1,
        num_prompts=count,
        rejects={},
        blocks=(count,),
        prompts="made-by-a-test",
        pairs=ids_digest(pair.id for pair in pairs),
    )
    open_rollouts(directory, manifest)

    def rollout(pair: RolloutPair, ids: np.ndarray) -> tuple[Rollout, str]:
        logprobs = np.zeros(len(ids), np.float32)
        return Rollout(prompt_id=pair.id, ids=ids, logprobs=logprobs, finish_reason="stop"), tokenizer.decode(ids)

    write_block(
        directory,
        0,
        prompts,
        [rollout(p, p.teacher_ids) for p in pairs],
        [rollout(p, p.student_ids) for p in pairs],
    )
    return directory


@pytest.fixture(scope="session")
def pairs() -> list[RolloutPair]:
    return make_pairs(24)


@pytest.fixture
def rollouts_dir(tmp_path: Path) -> Path:
    return write_rollouts(tmp_path / "rollouts", 24)
