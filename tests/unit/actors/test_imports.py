"""What processes of a run import: seconds of every start, for every user. Heavy things stay out that nobody there uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Of the libraries' own accord, or of ours, where something was imported at the top that only another role needs.
NEVER = ("vllm", "mlflow", "wandb", "datasets", "lm_eval", "trl", "tensorboard", "plotly", "sklearn")
LOAD = (
    "import torch; from vcrd_ray.models.checkpoint_files import load_causal_lm, load_tokenizer, resolve_model;"
    " load_tokenizer(resolve_model('tiny:student-base'));"
    " load_causal_lm(resolve_model('tiny:student-base'), dtype='float32', device=torch.device('cpu'))"
)
RANK = f"import actors.ranks.worker; from vcrd_ray.models.backend.deepspeed import *; import_deepspeed(); {LOAD}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "program", "besides"),
    [
        ("rank", RANK, ()),
        (
            "teacher",
            f"import actors.roles.engine, vcrd_ray.engines.hf; {LOAD}",
            ("deepspeed", "peft", "ray.train", "ray.data"),
        ),
        (
            "judge",
            f"import actors.roles.judge, vcrd_ray.judges.value_head; {LOAD}",
            ("deepspeed", "peft", "ray.train", "ray.data"),
        ),
        ("driver", "import jobs.distill", ("torch", "transformers", "deepspeed", "ray")),
    ],
)
def test_a_process_imports_no_more_than_it_needs(role: str, program: str, besides: tuple[str, ...]) -> None:
    names = (*NEVER, *besides)
    found = f"print(*[name for name in {names!r} if name in sys.modules])"
    code = f"import os, sys; os.environ['DS_ACCELERATOR'] = 'cpu'\n{program}\n{found}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "", f"{role} imports {done.stdout.splitlines()[-1]}"
