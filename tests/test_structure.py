"""The rooms and the direction of imports between them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "detector", "engine", "losses")
# Each room may import these; every arrow points downwards.
ALLOWED = {
    "losses": set(),
    "data": set(),
    "detector": {"losses", "data.target", "data.errors"},
    "engine": {"losses", "data", "detector"},
}
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for module in imported_modules(path):
        other = module.split(".")[0]
        if other in {*ROOMS, "train", "evaluate", "scripts"} - {room}:
            assert module in ALLOWED[room] or other in ALLOWED[room], f"{path} imports {module}"


def test_only_engine_distributed_and_the_weighting_know_about_ranks() -> None:
    for path in FILES:
        if "torch.distributed" in imported_modules(path):
            assert str(path.relative_to(ROOT)) in {
                "engine/process/distributed.py",
                "losses/reduction.py",
            }


def test_there_are_no_drawers() -> None:
    drawers = {"utils", "util", "misc", "helpers", "common"}
    assert not [path for path in FILES if drawers & {path.stem, path.parent.name}]
