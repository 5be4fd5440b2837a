from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import load_config
from scripts.measure_endurance import BATCH, EPOCHS, main, training


def test_its_run_is_one_that_can_be_trained(tmp_path: Path) -> None:
    words = training(tmp_path, 10_000)
    config = load_config(Path(words[words.index("--config") + 1]), words[4:])
    assert config.data.shapes.train_images * config.train.epochs // BATCH == 10_000
    assert (config.train.epochs, config.data.batch_size) == (EPOCHS, BATCH)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--iterations", "30"], "'30' is not a whole number of at least 40"),
        (["--parts", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_a_run_that_cannot_be_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err
