"""Any file and any command line: a configuration, or one clear error of the project."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.cli import load_config
from jobs.mistakes import all_keys
from tests.unit.fuzzing import bounded
from vcrd_ray.config import Config
from vcrd_ray.config.methods import METHODS, with_method
from vcrd_ray.errors import ConfigError

# Each command line builds the whole parser: few of them.
_FEW, _MANY = bounded(12), bounded(150)

_KEYS = st.one_of(st.sampled_from(all_keys()), st.text(max_size=5))
_TYPES = st.sampled_from(
    ["tiny", "jsonl", "parquet", "hf", "mix", "value_head", "oracle", "step_tags", "ratio", "jsd", "amid", "x"]
)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    _TYPES,
    st.sampled_from(
        ["1:30", "0100", "yes", "~", "a" * 300, "/x\0y", "null", "[1", "{", "caf\xe9", "-1", "1e999", ".inf"]
    ),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.just("type"), inner, max_size=3),
    max_leaves=6,
)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as the sections of a file; where a key and its section are both there, the last one is."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        here = tree
        for section in sections:
            if not isinstance(here.get(section), dict):
                here[section] = {}
            here = here[section]
        here[last] = value
    return tree


def load(*argv: str) -> Config | None:
    try:
        return load_config("distill", "", list(argv), any_key=False)[0]
    except ConfigError as error:
        # Whatever is wrong, a line says it, and a long value does not drown it.
        assert str(error).strip() and all(len(line) < 1500 for line in str(error).splitlines())
        return None


@_MANY
@given(st.dictionaries(_KEYS, _VALUES, max_size=4), st.sampled_from(sorted(METHODS)))
def test_any_sections_make_a_config_or_one_error(flat: dict[str, Any], method: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_text(yaml.safe_dump(nested(flat)), encoding="utf-8")
        config = load("--config", str(file))
    if config is not None:
        try:
            again = Config.model_validate(with_method(config, method).model_dump(round_trip=True))
            assert again.distill.objective == with_method(config, method).distill.objective
        except ConfigError:
            pass


@_MANY
@given(st.one_of(st.binary(max_size=60), st.text("ab:{}[]-&*!|>#'\"~,? \n\t.01eE\\u", max_size=60).map(str.encode)))
def test_any_bytes_make_a_config_or_one_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "c.yaml").write_bytes(content)
        load("--config", str(Path(folder) / "c.yaml"))


_WORDS = st.one_of(
    st.text(max_size=12).filter(lambda text: text not in ("-h", "--help")),
    st.sampled_from(
        ["--", "-", "--dry-run", "--resume", "--config", "[1,2]", "{", '{"type": "mix"}', "null", "a\0b", "\udce9"]
    ),
)


@_FEW
@given(
    st.lists(
        st.tuples(st.sampled_from(all_keys()), _WORDS | _TYPES).map(lambda pair: f"--{pair[0]}={pair[1]}"), max_size=4
    ),
    st.lists(_WORDS, max_size=2),
)
def test_any_command_line_makes_a_config_or_one_error(options: list[str], words: list[str]) -> None:
    load(*options, *words)
