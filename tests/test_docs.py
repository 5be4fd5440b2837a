"""The pages of the docs lead to each other. `make docs` checks more, where MkDocs is there."""

from __future__ import annotations

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
