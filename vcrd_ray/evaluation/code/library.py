"""Where EvalPlus is installed, and in which version. Knows nothing of tasks; imports nothing of it.

A plain `pip install evalplus` brings clients of three model providers and an older protobuf. Judging needs none of them:

    pip install --no-deps evalplus==0.3.1
    pip install "tree-sitter>=0.22" "tree-sitter-python>=0.21" "termcolor>=2" "psutil>=5.9" "tqdm>=4.56" numpy
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from vcrd_ray.errors import ConfigError

EVALPLUS_VERSION = "0.3.1"
"""Another version may judge otherwise: oracles and time limits have changed before."""

_REQUIREMENTS = {
    "tree_sitter": '"tree-sitter>=0.22"',
    "tree_sitter_python": '"tree-sitter-python>=0.21"',
    "termcolor": '"termcolor>=2"',
    "psutil": '"psutil>=5.9"',
    "tqdm": '"tqdm>=4.56"',
    "numpy": "numpy",
}


def library_paths() -> tuple[Path, ...]:
    """Directories that hold the packages which judging imports.

    Raises:
        ConfigError: one is missing, or EvalPlus has another version.
    """
    homes = {name: _home(name) for name in ("evalplus", *_REQUIREMENTS)}
    if homes["evalplus"] is None or version("evalplus") != EVALPLUS_VERSION:
        raise ConfigError(
            f"code benchmarks are judged by evalplus {EVALPLUS_VERSION}, which is not installed:"
            f" pip install --no-deps evalplus=={EVALPLUS_VERSION}"
        )
    missing = [requirement for name, requirement in _REQUIREMENTS.items() if homes[name] is None]
    if missing:
        raise ConfigError(f"evalplus needs packages that are not installed: pip install {' '.join(missing)}")
    return tuple(dict.fromkeys(home for home in homes.values() if home is not None))


def interpreter_paths() -> tuple[Path, ...]:
    """Directories that this interpreter needs to start."""
    named = (Path(path) for path in (sys.prefix, sys.base_prefix, sys.exec_prefix))
    return tuple(dict.fromkeys(path for name in named for path in (name, name.resolve())))


def _home(name: str) -> Path | None:
    """The directory a package is imported from."""
    spec = find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent.parent
