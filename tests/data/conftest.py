"""What several tests of the data read."""

from __future__ import annotations

from pathlib import Path

import pytest
from rectangles import write_rectangles

from data.annotations import Annotations


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Annotations]:
    """The folder of nine pictures, and what is annotated in them."""
    root = tmp_path_factory.mktemp("rectangles")
    return root, write_rectangles(root)
