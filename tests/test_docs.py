"""The pages of the docs lead to each other. `make docs` checks more, where MkDocs is there."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# docs/study holds kept runs, not pages
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if DOCS / "study" not in path.parents]
BLOCK = re.compile(r"^```python\n(def .*?|# losses/.*?)^```", re.DOTALL | re.MULTILINE)
IMPORT = re.compile(
    r"^from ((?:data|detector|engine|losses)[a-z0-9_.]*) import (.*)$", re.MULTILINE
)
API = re.compile(r"^::: ([a-z0-9_.]+)(?:\n +options: \{members: \[(.*)\]\})?", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def pages_of(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    items = list(nav.values()) if isinstance(nav, dict) else nav
    assert isinstance(items, list)
    return [page for item in items for page in pages_of(item)]


def test_the_site_lists_every_page_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages_of(nav)) == [path.relative_to(DOCS).as_posix() for path in PAGES]


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(ROOT.glob("*.md"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_to_files(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page}: {link}"


@pytest.mark.parametrize("page", ["box-loss", "weighting"])
def test_code_to_paste_into_the_project_passes_its_linter(page: str) -> None:
    (code,) = BLOCK.findall((DOCS / f"howto/{page}.md").read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", "losses/pasted.py", "-"]
    # a function alone does not import what its file imports
    found = subprocess.run(
        [*command, "--ignore=F821"], input=code, text=True, cwd=ROOT, capture_output=True
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_the_docs_import_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module, names in IMPORT.findall(text):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}: {name}"
    for module, members in API.findall(text):
        found = importlib.import_module(module)
        for name in filter(None, members.split(", ")):
            assert hasattr(found, name), f"{module}: {name}"
