"""Generate configs/schema.json and docs/configuration.md from the config models.

python scripts/config_reference.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# ruff: noqa: E402
from engine.config_reference import reference_page, schema_text
from engine.process.standard_output import status_of_tool


def main() -> int:
    """Write both files, or report which of them are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    check = parser.parse_args().check
    files = {"configs/schema.json": schema_text(), "docs/configuration.md": reference_page()}
    stale = [name for name, text in files.items() if _content(ROOT / name) != text]
    if check:
        for name in stale:
            print(f"{name}: out of date; run scripts/config_reference.py")
        return bool(stale)
    for name in stale:
        (ROOT / name).write_text(files[name], encoding="utf-8")
        print(f"{name}: written")
    return 0


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
