"""The config keys by which runs are compared."""

from __future__ import annotations

from engine.config import Config

# The same for every run: TensorBoard takes the columns of its table from one of the runs. It sorts
# them by name and shows the first five until others are selected.
COMPARED = (
    "detector.backbone",
    "detector.type",
    "loss.box.type",
    "loss.weighting.interval",
    "loss.weighting.type",
    "loss.weighting.update",
    "loss.weighting.variant",
    "train.ema",
    "train.epochs",
    "train.lr",
    "train.optimizer",
    "train.schedule",
    "train.seed",
)


def hyperparameters(config: Config) -> dict[str, str | float | int]:
    """The config keys by which runs are compared; null becomes the text ``null``."""
    values = config.flat()
    return {key: "null" if values[key] is None else values[key] for key in COMPARED}
