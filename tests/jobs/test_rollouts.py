"""What jobs.rollouts accepts and refuses before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jobs import evaluate, rollouts, sft
from jobs.cli import load_config
from vcrd_ray.config import Config
from vcrd_ray.config.data import MixPrompts
from vcrd_ray.errors import ConfigError, DataError, RunDirectoryError
from vcrd_ray.runs.directory import RunDirectory


def written(folder: Path, rollouts: dict[str, object]) -> list[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"dir": str(folder / "run")}, "rollouts": rollouts}))
    return ["--config", str(folder / "config.yaml")]


def mixture(folder: Path) -> dict[str, object]:
    (folder / "a.jsonl").write_text("".join(json.dumps({"question": f"q{i}", "answer": i}) + "\n" for i in range(9)))
    files = {"type": "jsonl", "path": str(folder / "a.jsonl")}
    sources = [{"share": 0.4, "prompts": files}, {"share": 0.6, "prompts": {"type": "tiny", "count": 20}}]
    return {"type": "mix", "count": 10, "sources": sources}


def test_a_mixture_is_read_from_a_file_and_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = mixture(tmp_path)
    options = ["--prompt.suffix", " How many?", "--rollouts.samples", "4", "--dry-run"]
    assert rollouts.main([*written(tmp_path, {"prompts": wanted}), *options]) == 0
    resolved = Config.model_validate(yaml.safe_load(capsys.readouterr().out))
    assert resolved.rollouts.prompts == MixPrompts.model_validate(wanted) and resolved.rollouts.samples == 4
    assert resolved.prompt.suffix == " How many?"
    argv = ["--rollouts.prompts.type", "mix", "--rollouts.prompts.count", "10"]
    config, _ = load_config("rollouts", "", [*argv, "--rollouts.prompts.sources", json.dumps(wanted["sources"])])
    assert config.rollouts.prompts == resolved.rollouts.prompts


def test_a_missing_file_of_a_mixture_is_refused_in_a_dry_run(tmp_path: Path) -> None:
    argv = written(tmp_path, {"prompts": mixture(tmp_path)})
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: no such file"):
        rollouts.main([*argv, "--dry-run"])


def test_a_dry_run_names_what_it_does_not_fetch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = {"type": "hf", "path": "owner/data", "split": "train", "messages_key": "messages"}
    assert rollouts.main([*written(tmp_path, {"prompts": prompts}), "--dry-run"]) == 0
    assert "fetches nothing from the hub: owner/data" in capsys.readouterr().err


def test_several_greedy_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollouts: samples 2 at temperature 0 are the same"):
        rollouts.main([*written(tmp_path, {"samples": 2, "sampling": {"temperature": 0}}), "--dry-run"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": []}, r"rollouts\.prompts\.mix\.sources"),
        ({"shuffle_sed": 1}, r"shuffle_sed: unknown key; did you mean rollouts\.prompts\.shuffle_seed"),
        ({"count": None}, r"rollouts\.prompts\.mix\.count"),
    ],
)
def test_a_wrong_key_of_a_mixture_is_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("rollouts", "", written(tmp_path, {"prompts": mixture(tmp_path) | change}))


@pytest.mark.parametrize(("job", "name"), [(sft, "sft"), (rollouts, "rollouts"), (evaluate, "evaluate-x")])
def test_a_stage_is_not_gone_on_with_under_another_template(tmp_path: Path, job: object, name: str) -> None:
    argv = ["--run.dir", str(tmp_path / "run")]
    config, _ = load_config(name, "", argv)
    with RunDirectory(config.run.dir, name, config, sections=job.SECTIONS) as directory:  # type: ignore[attr-defined]
        (directory.path / "result").touch()
    other, _ = load_config(name, "", [*argv, "--prompt.suffix", "."])
    with pytest.raises(RunDirectoryError, match=r"prompt\.suffix: '' then, '\.' now"):
        RunDirectory(other.run.dir, name, other, sections=job.SECTIONS)  # type: ignore[attr-defined]
