"""A process that may not have more memory says what to lower."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from processes import started, training, wait_until, write_config
from runs import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux"),
]


def test_an_iteration_without_enough_memory_says_what_to_lower(tmp_path: Path) -> None:
    values = tiny(tmp_path, data={"image_size": [6000, 6000]}, train={"name": "large"})
    with started(*training(write_config(tmp_path, values))) as program:
        log = tmp_path / "large" / "train.log"
        wait_until(lambda: log.exists() and "lr " in log.read_text(), program)
        resource.prlimit(program.process.pid, resource.RLIMIT_AS, (7 << 30, 7 << 30))
        code, _, errors = program.end()
    assert code == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "allocate memory" in line
    assert "lower data.batch_size" in line
    assert "data.image_size" in line
    assert "Traceback" not in errors
