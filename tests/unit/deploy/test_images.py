"""Images and their installation: the structure of the Dockerfiles, and what install.sh asks of pip. Nothing is built."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vcrd_ray
from tests.unit.deploy.files import DEPLOY, DOCKERFILES, ROOT

SCRIPT = DEPLOY / "install.sh"
# Stands in for an environment's Python: notes what pip is asked, lets the real one read pyproject.toml, imports nothing.
STUB = """#!/usr/bin/env bash
here=$(dirname "$0")
if [[ $1 == -m && $2 == venv ]]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"
elif [[ $1 == -m ]]; then shift 2; echo "$*" >>"$here/../pip.log"
elif [[ $2 == *pyproject.toml ]]; then exec "$REAL_PYTHON" "$@"
else echo "$2" >"$here/../checked"; fi
"""
each_kind = pytest.mark.parametrize("kind", ["cpu", "gpu"])
both_files = pytest.mark.parametrize("path", DOCKERFILES.values(), ids=lambda path: path.name)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined and comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, arguments) for name, arguments in found]


def runtime(path: Path) -> list[tuple[str, str]]:
    """The instructions of the last stage."""
    steps = instructions(path)
    return steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]


def environment(path: Path) -> dict[str, str]:
    (variables,) = (arguments for name, arguments in runtime(path) if name == "ENV")
    return dict(pair.split("=", 1) for pair in variables.split())


def install(kind: str, prefix: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script with the stand-in for Python."""
    stub = prefix.parent / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "PYTHON": str(stub), "REAL_PYTHON": sys.executable, **variables}
    return subprocess.run(["bash", str(SCRIPT), kind, str(prefix)], env=env, capture_output=True, text=True, timeout=60)


@each_kind
def test_what_is_installed_is_what_the_project_pins(kind: str, tmp_path: Path) -> None:
    done = install(kind, tmp_path / "env")
    assert done.returncode == 0, done.stderr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = (tmp_path / "env" / "requirements.txt").read_text().splitlines()
    assert asked == [*project["dependencies"], *extras[kind], *extras["data"]]
    assert (tmp_path / "env" / "checked").read_text().strip() == kind


@each_kind
def test_only_torch_comes_from_another_index_and_only_cpu_builds_are_cleaned(kind: str, tmp_path: Path) -> None:
    install(kind, tmp_path / "env", TORCH_INDEX="--index-url https://example.org/whl")
    torch, rest, *others = [
        line.split() for line in (tmp_path / "env" / "pip.log").read_text().splitlines() if " freeze" not in line
    ]
    assert torch[-1].startswith("torch==") and torch[-3:-1] == ["--index-url", "https://example.org/whl"]
    assert "--index-url" not in rest and rest[-2] == "--requirement"
    assert [line[-3:] for line in others] == ([["torchvision", "torchaudio", "torchcodec"]] if kind == "cpu" else [])


def test_without_a_choice_cpu_builds_come_from_their_own_index(tmp_path: Path) -> None:
    install("cpu", tmp_path / "env")
    assert "https://download.pytorch.org/whl/cpu torch==" in (tmp_path / "env" / "pip.log").read_text()


def test_a_wrong_kind_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    wrong = install("tpu", tmp_path / "env")
    assert wrong.returncode == 2 and "cpu or gpu, not 'tpu'" in wrong.stderr
    assert install("cpu", tmp_path / "env").returncode == 0
    again = install("cpu", tmp_path / "env")
    assert again.returncode == 2 and "holds an environment already" in again.stderr


@each_kind
def test_images_are_built_by_the_same_script_from_the_project_s_own_versions(kind: str) -> None:
    steps = instructions(DOCKERFILES[kind])
    assert any(f"bash deploy/install.sh {kind} /opt/venv" in arguments for name, arguments in steps if name == "RUN")
    copied = [a for name, a in steps if name == "COPY" and not a.startswith("--from")]
    assert copied[:2] == ["pyproject.toml ./", "deploy/install.sh deploy/"]
    # No version stands here beside those of pyproject.toml and of the package itself.
    assert "==" not in DOCKERFILES[kind].read_text()
    assert ("ARG", f"VERSION={vcrd_ray.__version__}") in steps


def test_both_images_have_one_python_and_one_environment_because_drivers_hand_theirs_on() -> None:
    bases = {a.split()[0] for path in DOCKERFILES.values() for name, a in instructions(path) if name == "FROM"}
    (base,) = bases
    (series,) = re.findall(r"^python:(\d+\.\d+)-slim-\w+$", base)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == f">={series}"
    assert project["tool"]["mypy"]["python_version"] == series
    cpu, gpu = environment(DOCKERFILES["cpu"]), environment(DOCKERFILES["gpu"])
    assert cpu.items() <= gpu.items()
    assert {name.split("_")[0] for name in gpu.keys() - cpu.keys()} == {"NVIDIA", "VLLM"}
    assert cpu["TORCH_EXTENSIONS_DIR"].startswith("/opt/venv/") and cpu["PATH"].startswith("/opt/venv/bin:")


@both_files
def test_an_image_has_what_launcher_and_kuberay_need(path: Path) -> None:
    steps = runtime(path)
    (system,) = (a for name, a in steps if name == "RUN" and "apt-get install" in a)
    # rsync and ssh: the launcher. wget: older operators' probes. g++: kernels that are compiled at first use.
    assert {"rsync", "openssh-client", "wget", "g++", "tini"} <= set(system.split())
    assert "/etc/profile.d/" in system  # Ray is started in login shells, which forget ENV PATH
    assert environment(path)["HOME"] == "/home/ray"  # the launcher reads it from the image
    assert ("ENTRYPOINT", '["tini", "--"]') in steps and ("CMD", '["bash"]') in steps


@both_files
def test_an_image_runs_as_a_numbered_user_and_keeps_no_caches(path: Path) -> None:
    steps = runtime(path)
    assert [a for name, a in steps if name == "USER"] == ["1000:1000"]
    for name, arguments in instructions(path):
        if name == "RUN" and "apt-get install" in arguments:
            assert "--no-install-recommends" in arguments and "rm -rf /var/lib/apt/lists/*" in arguments
        if name == "RUN" and "pip install" in arguments:
            assert "--no-cache-dir" in arguments
    labels = " ".join(a for name, a in steps if name == "LABEL")
    for label in ("title", "description", "licenses", "version"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert 'licenses="Apache-2.0"' in labels


@both_files
def test_the_build_sees_what_it_copies_and_nothing_else(path: Path) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for name, arguments in instructions(path)
        if name == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    assert copied == let_in and all((ROOT / source).exists() for source in let_in)
    assert any(fnmatch.fnmatch("vcrd_ray/__pycache__", line) for line in lines if not line.startswith("!"))


@pytest.mark.parametrize(("tool", "files"), [("hadolint", [*DOCKERFILES.values()]), ("shellcheck", [SCRIPT])])
def test_linters_find_nothing(tool: str, files: list[Path]) -> None:
    program = shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{tool} is not installed; it is in the dev extra")
    done = subprocess.run([program, *map(str, files)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
