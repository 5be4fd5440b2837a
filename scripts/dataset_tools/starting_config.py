"""Starting configs for training on a dataset."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data.annotations import Annotations
from data.errors import InputError
from engine.process.atomic_file import write_atomically
from scripts.dataset_tools.layout import Layout
from scripts.dataset_tools.output_folder import check_place
from scripts.dataset_tools.suggestions import SCALES, Suggestion

_VIEWS = 12_000  # images that a short first training should see
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def check_config(path: Path) -> None:
    """Check before long work that ``write_config`` can write a config.

    Raises:
        InputError: the file exists or cannot be written.
    """
    if os.path.lexists(path):
        raise InputError(f"{path}: already exists; choose a new file")
    check_place(path)


def write_config(
    path: Path,
    layout: Layout,
    parts: Mapping[str, Annotations],
    train: str,
    val: str,
    suggestion: Suggestion | None,
    from_scratch: bool,
) -> None:
    """Write a config that train.py accepts.

    ``train`` and ``val`` are the splits, of ``parts``, to train and to validate on; the classes are
    theirs. The detector is the suggested one with ImageNet weights, or with ``from_scratch`` a
    small one without. ``data.root`` is the path as given: relative to where train.py is run.

    Raises:
        InputError: the file exists or cannot be written, or there is nothing to train on.
    """
    check_config(path)
    if suggestion is None:
        raise InputError(
            f"--write-config: {layout.root} has no objects to train on, so anchors cannot be "
            "suggested; annotate some, or choose other --splits"
        )
    images = len(parts[train])
    annotations = layout.join(parts[split] for split in dict.fromkeys([train, val]))
    base = CONFIGS / "base" / ("small.yaml" if from_scratch else f"{suggestion.detector}.yaml")
    values = {
        "base": _path_from(path, base),
        "detector": _detector(suggestion, from_scratch),
        "data": _data(layout, train, val, annotations.classes, suggestion),
        "train": {"name": path.stem, **_schedule(images, from_scratch)},
    }
    quoted = shlex.quote(str(path))
    head = (
        f"# Suggested by datasets.py inspect: {images} training images, median box side "
        f"{suggestion.median_side:.0f} px after resizing,\n# anchors that cover "
        f"{suggestion.coverage:.1%} of the boxes.\n#   python train.py --config {quoted}\n"
        "# Both loss weights stay at 1. With ALWA: loss.weighting.type=alwa loss.weighting.variant="
        f"{2 if suggestion.detector == 'retinanet' else 1}\n"
    )
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True)
    write_atomically(path, (head + text).encode())


def _detector(suggestion: Suggestion, from_scratch: bool) -> dict[str, Any]:
    anchors = {
        "sizes": list(suggestion.sizes),
        "ratios": list(suggestion.ratios),
        "scales_per_octave": len(SCALES),
    }
    heads = {"retinanet": {"head_norm": "batch"}} if from_scratch else {}
    return {
        "type": suggestion.detector,
        "levels": list(suggestion.levels),
        "anchors": anchors,
        **heads,
    }


def _data(
    layout: Layout, train: str, val: str, classes: tuple[str, ...], suggestion: Suggestion
) -> dict[str, Any]:
    zero_based = {"voc": {"coordinates": "zero_based"}} if layout.zero_based else {}
    links = {"follow_links": True} if layout.follow_links else {}
    return {
        "format": layout.format,
        "root": str(layout.root),
        "train": train,
        "val": val,
        "classes": list(classes),
        "image_size": list(suggestion.image_size),
        "batch_size": 2,
        **zero_based,
        **links,
    }


def _schedule(images: int, from_scratch: bool) -> dict[str, Any]:
    epochs = min(120, max(12, -(-_VIEWS // max(images, 1))))
    milestones = {"milestones": [epochs * 2 // 3, epochs * 11 // 12]}
    return {
        "epochs": epochs,
        "warmup_iterations": max(1, min(500, epochs * images // 20)),
        **({} if from_scratch else milestones),
    }


def _path_from(config: Path, base: Path) -> str:
    """Return the path for ``base:``, relative if both files are in the repository."""
    folder = config.resolve().parent
    return os.path.relpath(base, folder) if folder.is_relative_to(CONFIGS.parent) else str(base)
