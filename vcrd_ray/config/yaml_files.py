"""YAML files -> plain values: the one way that all of them are read. Knows nothing of what they mean.

Words and numbers are those of YAML 1.2, as people mean them: `yes`, `1:30` and `0100` are texts, which a key that wants a
number takes or refuses as on the command line. A key that stands twice is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from vcrd_ray.errors import ConfigError

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """PyYAML's, without the words and numbers that YAML 1.1 has beyond 1.2."""


class _Twice(Exception):
    """A key that stands twice in one section."""


_OWN = {f"{_TAG}{name}" for name in ("bool", "int", "float")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in _OWN]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    f"{_TAG}int",
    re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path, *, what: str = "") -> Any:
    """The one document of a file; None where it is empty.

    Args:
        what: the option or key that named the file, for errors.

    Raises:
        ConfigError: no such file, no text, no YAML, several documents, or a key that stands twice.
    """
    documents = read_yaml_documents(path, what=what)
    if len(documents) > 1:
        raise ConfigError(f"{_shown(path, what)}: {len(documents)} documents (--- between them); keep one")
    return documents[0] if documents else None


def read_yaml_documents(path: Path, *, what: str = "") -> list[Any]:
    """All documents of a file.

    Raises:
        ConfigError: as `read_yaml`, but for several documents.
    """
    text, found = read_yaml_text(path, what=what), []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node: Any = loader.get_node()
            _check_keys(node, "", set())
            found.append(loader.construct_document(node))
    except _Twice as error:
        raise ConfigError(f"{_shown(path, what)}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{_shown(path, what)}: not valid YAML: {line}{error.problem or error.context}") from None
    except RecursionError:
        raise ConfigError(f"{_shown(path, what)}: not valid YAML: nested too deeply") from None
    except Exception as error:  # what is written as a date or a number and is none fails as its conversion does
        said = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(f"{_shown(path, what)}: not valid YAML: {said[0]}") from None
    return found


def read_yaml_text(path: Path, *, what: str = "") -> str:
    """A file as it is written, decoded.

    Raises:
        ConfigError: no such file, or no text.
    """
    shown = _shown(path, what)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{shown}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{shown}: a folder; give a file in it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{shown}: cannot be read: {reason}") from None
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{shown}: line {line} is not UTF-8; save the file as UTF-8") from None


def _shown(path: Path, what: str) -> str:
    return f"{what} {path}".strip()


def _check_keys(node: yaml.Node, section: str, seen: set[int]) -> None:
    """Refuse a key that stands twice: all but the last would be dropped."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _check_keys(item, f"{section}{number}.", seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            line = key.start_mark.line + 1
            if name and name in lines:
                raise _Twice(f"{section}{name} stands twice, in lines {lines[name]} and {line}; keep one")
            lines[name] = line
            _check_keys(value, f"{section}{name}.", seen)
