"""Load a trained detector from a checkpoint, ready for inference."""

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
from engine.precision import log_precision
from engine.process.distributed import choose_device


@dataclass(frozen=True)
class Trained:
    """A trained detector with its config and classes.

    Attributes:
        config: config of its training, with overrides.
        classes: names of its classes by label.
        detector: the detector in evaluation mode, on the device.
        device: device of the detector.
    """

    config: Config
    classes: tuple[str, ...]
    detector: Detector
    device: torch.device


def load_trained(
    path: str | Path, overrides: Sequence[str] = (), device: torch.device | None = None
) -> Trained:
    """Load the detector of a checkpoint.

    Args:
        path: ``last.pt`` or ``best.pt`` of a run.
        overrides: overrides ``key.path=value`` of its config.
        device: device of the detector; by default CUDA if available, else the CPU, unless an
            override of ``train.device`` names one. The device of its training is ignored.

    Raises:
        InputError: the checkpoint cannot be read, or an override does not fit it.
    """
    saved = load_checkpoint(path)
    train = {**saved["config"].get("train", {}), "device": "auto"}
    config = override_config({**saved["config"], "train": train}, overrides, source=str(path))
    check_classes(saved, config.data.classes)
    detector = build_detector(config.detector, config.loss, len(saved["classes"]))
    load_weights(detector, saved["detector"], path)
    if device is None:
        device = choose_device(config.train.device)
        log_precision(config.train.amp, device)
    return Trained(config, tuple(saved["classes"]), detector.to(device).eval(), device)


def load_weights(detector: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Load a checkpoint's weights.

    Raises:
        InputError: the architectures differ, for example because of an override.
    """
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path}: its weights do not fit the detector of the config ({reason} ...); "
            "the architectures differ: omit overrides of detector and loss"
        ) from None
