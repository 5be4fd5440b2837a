from __future__ import annotations

from pathlib import Path

from engine.config import load_config
from scripts.measure_endurance import BATCH, EPOCHS, training


def test_its_run_is_one_that_can_be_trained(tmp_path: Path) -> None:
    words = training(tmp_path, 10_000)
    config = load_config(Path(words[words.index("--config") + 1]), words[4:])
    assert config.data.shapes.train_images * config.train.epochs // BATCH == 10_000
    assert (config.train.epochs, config.data.batch_size) == (EPOCHS, BATCH)
