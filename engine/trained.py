"""A trained detector out of a checkpoint, ready to look at images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.errors import InputError
from detector.build import Detector, build_detector
from engine.checkpoint import check_classes, load_checkpoint
from engine.config import Config, override_config
from engine.precision import tell_precision
from engine.process.distributed import choose_device


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds.

    Attributes:
        config: of its training, with overrides.
        classes: the names of its labels.
        detector: in evaluation mode, on the device.
        device: where it is.
    """

    config: Config
    classes: tuple[str, ...]
    detector: Detector
    device: torch.device


def load_trained(
    path: str | Path, overrides: Sequence[str] = (), device: torch.device | None = None
) -> Trained:
    """Read a checkpoint.

    Args:
        path: ``last.pt`` or ``best.pt`` of a run.
        overrides: ``key.path=value`` of its config.
        device: where to put it, by default the best that is here, unless an override of
            ``train.device`` names one; it may have been trained on another machine.

    Raises:
        InputError: it cannot be read, or an override does not fit it.
    """
    saved = load_checkpoint(path)
    train = {**saved["config"].get("train", {}), "device": "auto"}
    config = override_config({**saved["config"], "train": train}, overrides, source=str(path))
    check_classes(saved, config.data.classes)
    detector = build_detector(config.detector, config.loss, len(saved["classes"]))
    load_weights(detector, saved["detector"], path)
    if device is None:
        device = choose_device(config.train.device)
        tell_precision(config.train.amp, device)
    return Trained(config, tuple(saved["classes"]), detector.to(device).eval(), device)


def load_weights(detector: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Load a checkpoint's weights.

    Raises:
        InputError: they are those of another architecture, as under an override of it.
    """
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path}: its weights do not fit the detector of the config ({reason} ...); "
            "the architectures differ: omit overrides of detector and loss"
        ) from None
