"""What documents name exists: files, folders and modules of this project."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")])
OURS = "vcrd_ray|actors|jobs|deploy|tests|docs"


def test_every_module_stands_in_the_tree_of_the_architecture() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## The way of one micro-batch")[0]
    modules = [path for package in ("vcrd_ray", "actors", "jobs") for path in (ROOT / package).rglob("[!_]*.py")]
    named = set(re.findall(r"[\w/]+\.py", tree))
    assert len(modules) > 200 and not sorted(str(path) for path in modules if path.name not in named)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_paths_and_modules_in_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    paths = set(re.findall(rf"`((?:{OURS})/[\w./-]*)", text)) | set(re.findall(r"\]\(([\w./-]+\.md)", text))
    bases = (ROOT, document.parent)
    assert not sorted(
        path for path in paths if "NAME" not in path and not any((base / path).exists() for base in bases)
    )
    modules = set(re.findall(rf"python -m ((?:{OURS})\.[\w.]*\w)", text))
    modules |= {".".join(m.split(".")[:-1]) for m in re.findall(r"`(vcrd_ray\.[\w.]+\.[A-Za-z_]\w*)`", text)}
    assert not sorted(name for name in modules if find_spec(name) is None)
