"""Commands that stand in the README and in the RayJob: the program understands them."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from jobs.cli import load_config
from tests.unit.deploy.files import DEPLOY, KUBERAY, ROOT, everything, load
from vcrd_ray.config import Config
from vcrd_ray.config.data import HfPrompts
from vcrd_ray.config.methods import METHODS


def readme_command() -> str:
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "README.md").read_text(encoding="utf-8"))
    (command,) = re.findall(r"jobs\.submit -- (jobs\.pipeline .*)", text)
    return f"python -m {command}"


def parsed(command: str) -> tuple[Config, list[str]]:
    python, module, job, *options = shlex.split(command.replace("/opt/vcrd_ray/", f"{ROOT}/"))
    assert (python, module) == ("python", "-m") and (ROOT / f"{job.replace('.', '/')}.py").is_file()
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--methods", nargs="+")
    options = [str(ROOT / o) if o.startswith("jobs/configs/") else o for o in options]
    config, flags = load_config("pipeline", "", options, extra=extra)
    return config, flags.methods


@pytest.mark.parametrize(
    "command", [readme_command(), load(KUBERAY[1])["spec"]["entrypoint"]], ids=["README", "RayJob"]
)
def test_the_run_is_one_that_every_node_of_the_cluster_can_find(command: str) -> None:
    config, methods = parsed(command)
    assert set(methods) <= set(METHODS)
    assert config.cluster.pools == "separate" and config.cluster.address is None
    prompts = (config.sft.prompts, config.rollouts.prompts, config.evaluate.prompts)
    # From the hub, or on the shared file system.
    assert all(isinstance(s, HfPrompts) or str(s.path).startswith("/shared/") for s in prompts if hasattr(s, "path"))
    assert config.run.dir.is_relative_to("/shared")
    # A node with GPUs takes longer to come than the defaults wait.
    assert min(config.cluster.start_timeout_s, config.cluster.request_timeout_s) >= 1800


def test_the_readme_names_every_file_that_is_there() -> None:
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    there = {path.name for path in everything()} - {"README.md", "__init__.py", ".dockerignore"}
    assert {name for name in there if name not in text} == set()
