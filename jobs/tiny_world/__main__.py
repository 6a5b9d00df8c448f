"""Makes the tiny world's tokenizer and models again and measures them. Knows nothing of Ray.

    python -m jobs.tiny_world --out DIR [--seed N]

Writes DIR/{teacher,teacher-weak,student-base,prm} and DIR/metrics.json. Needs about 30 minutes.
"""

import argparse
import json
import logging
import math
from pathlib import Path

NUM_TEST_PROBLEMS = 1000
NUM_JUDGED_ROLLOUTS = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.tiny_world",
        description="Make the tiny world's tokenizer, teacher, weak teacher, student base and PRM.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="seed of all initial weights and orders")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"--out {arguments.out} exists: choose a new folder")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    make(arguments.out, seed=arguments.seed)
    metrics = measure(arguments.out, seed=arguments.seed)
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))


def make(out: Path, *, seed: int) -> None:
    """Trains and writes all four models."""
    # Imported here, so that --help and a bad argument are answered without torch.
    import torch

    from jobs.tiny_world import policies, reward_training, training
    from vcrd_ray.config.world import WorldConfig
    from vcrd_ray.tiny.tokenizer import build_tokenizer
    from vcrd_ray.tiny.world import SFT_SEED

    # One thread: sums in the same order whatever the machine's number of cores.
    torch.set_num_threads(1)
    config, tokenizer = WorldConfig(), build_tokenizer()
    training.save(policies.make_student_base(config, tokenizer, seed=seed), tokenizer, out / "student-base")
    teacher, weak = policies.make_teachers(config, tokenizer, seed=seed)
    training.save(teacher, tokenizer, out / "teacher")
    training.save(weak, tokenizer, out / "teacher-weak")
    # From the rounded files: the judge can be made again without the others.
    teacher, weak, student = (training.load(out / name) for name in ("teacher", "teacher-weak", "student-base"))
    tuned = policies.supervise(student, config, tokenizer, split_seed=SFT_SEED, order_seed=seed)
    judge = reward_training.make_reward_model(config, tokenizer, teacher=teacher, proposers=[weak, tuned], seed=seed)
    judge.save(out / "prm", tokenizer)


def measure(folder: Path, *, seed: int) -> dict[str, float]:
    """Figures of the models in a folder, rounded as they are there, on unseen problems."""
    import torch
    from transformers import AutoTokenizer

    from jobs.tiny_world import policies, reward, training, verdicts
    from vcrd_ray.config.world import WorldConfig
    from vcrd_ray.tiny.world import SFT_SEED, TEST_SEED, make_problems

    torch.set_num_threads(1)
    config = WorldConfig()
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    problems = make_problems(config, seed=TEST_SEED, count=NUM_TEST_PROBLEMS)
    teacher, weak, student = (training.load(folder / name) for name in ("teacher", "teacher-weak", "student-base"))
    tuned = policies.supervise(student, config, tokenizer, split_seed=SFT_SEED, order_seed=seed)
    metrics: dict[str, float] = {}
    for name, model in {
        "teacher": teacher,
        "teacher-weak": weak,
        "student-base": student,
        "student-after-sft": tuned,
    }.items():
        accuracy = training.greedy_accuracy(model, tokenizer, problems)
        low, high = wilson_interval(accuracy, NUM_TEST_PROBLEMS)
        metrics |= {f"{name}/accuracy": accuracy, f"{name}/low": low, f"{name}/high": high}
    judge = reward.RewardModel.load(folder / "prm")
    for name, model in {"teacher-weak": weak, "student-after-sft": tuned}.items():
        judged = verdicts.judge_proposals(judge, model, tokenizer, problems[:NUM_JUDGED_ROLLOUTS], seed=seed)
        metrics |= {
            f"prm/on-{name}/auc-mid-step": judged.auc(at_step_end=False),
            f"prm/on-{name}/auc-step-end": judged.auc(at_step_end=True),
            f"prm/on-{name}/share-invalid": (~judged.valid).double().mean().item(),
        }
    return metrics


def wilson_interval(share: float, trials: int) -> tuple[float, float]:
    """95% interval of a measured share."""
    z = 1.96
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    half /= 1 + z * z / trials
    return centre - half, centre + half


if __name__ == "__main__":
    main()
