"""What the suite would leave behind is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.leftovers import VARIABLE, files_of, processes_of


def test_a_process_that_outlives_who_started_it_is_found() -> None:
    ours = os.environ[VARIABLE]
    orphan = (
        "import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True, stdout=-3, stderr=-3).pid)"
    )
    done = subprocess.run([sys.executable, "-c", orphan], capture_output=True, text=True, check=True)
    (found,) = [process for process in processes_of(ours) if process.pid == int(done.stdout)]
    found.kill()
    found.wait(10)
    assert int(done.stdout) not in [process.pid for process in processes_of(ours)]
    assert int(done.stdout) not in [process.pid for process in processes_of("another-session")]


def test_files_are_found_and_caches_are_not(tmp_path: Path) -> None:
    for name in ("a/b.txt", ".venv/c", "a/__pycache__/d.pyc", "x.egg-info/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(files_of(tmp_path)) == [tmp_path / "a" / "b.txt"]
