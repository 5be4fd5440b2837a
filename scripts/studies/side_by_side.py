"""Figures 5 and 7: detections of several runs in the same images, beside the ground truth."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from data.annotations import Annotations
from data.build import build_annotations, known_classes
from data.errors import InputError
from data.image_files import open_images
from data.images import Pixels
from engine.config import Config, parse_config
from engine.evaluation.detections import Detections
from engine.evaluation.drawing import GAP, draw_pair
from engine.evaluation.evaluator import read_detections
from engine.strict_yaml import read_yaml
from scripts.figures import literal
from scripts.studies.figures import ShownRun, finished
from scripts.studies.run import as_words

ROOT = Path(__file__).resolve().parents[2]
DETECTIONS = "detections-{split}.json"


def draw_detections(
    runs: Sequence[ShownRun], heading: str, split: str, data_root: Path | None, count: int = 3
) -> Figure:
    """Draw a row per image: the ground truth, then the detections of each run's last checkpoint.

    Args:
        split: train, val, or the name of a split.
        data_root: folder of the images, if not that of the runs' configs.
        count: number of images, spread over the split.

    Raises:
        InputError: a run has no checkpoint yet, or its data are missing.
    """
    config = run_config(runs[0].folder, data_root)
    name = config.data.split(split)
    annotations = build_annotations(config.data, name, known_classes(config.data))
    found = [detections_of(run.folder, annotations, split, config.data.root) for run in runs]
    rows = sorted(set(np.linspace(0, len(annotations) - 1, count + 2)[1:-1].astype(int).tolist()))
    figure, axes = plt.subplots(
        len(rows), 1 + len(runs), figsize=(3.2 * (1 + len(runs)), 2.7 * len(rows)), squeeze=False
    )
    for row, panels in zip(rows, axes, strict=True):
        pictures = panels_of(row, annotations, found, config)
        for panel, picture in zip(panels, pictures, strict=True):
            panel.imshow(picture)
            panel.set_axis_off()
    for panel, title in zip(axes[0], ["ground truth", *(run.title for run in runs)], strict=True):
        panel.set_title(literal(title), fontsize=10)
    return finished(figure, heading)


def panels_of(
    row: int, annotations: Annotations, found: Sequence[Detections], config: Config
) -> list[Pixels]:
    """Draw one image with its ground truth and with each run's detections, ``(H, W, 3)`` each."""
    image = open_images(config.data, annotations, in_memory=False).read(row)
    pairs = [draw_pair(image, row, annotations, detections) for detections in found]
    middle = (pairs[0].shape[1] - GAP) // 2  # a pair is two images of equal width, GAP apart
    return [pairs[0][:, :middle], *(pair[:, middle + GAP :] for pair in pairs)]


def detections_of(
    folder: Path, annotations: Annotations, split: str, data_root: Path
) -> Detections:
    """Return the detections of a run's last checkpoint, computed once and cached beside it."""
    checkpoint, kept = folder / "last.pt", folder / DETECTIONS.format(split=split.replace("/", "-"))
    if not checkpoint.is_file():
        raise InputError(f"{folder}: has no checkpoint yet; the first is written after an epoch")
    if not kept.is_file() or kept.stat().st_mtime < checkpoint.stat().st_mtime:
        words = [str(checkpoint), "--split", split, "--coco-results", str(kept)]
        words += ["--output", str(folder / ".scores-of-a-figure.json")]
        words += as_words({"data.root": data_root})
        done = subprocess.run(
            [sys.executable, str(ROOT / "evaluate.py"), *words],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise InputError(f"{folder}: {' '.join(done.stderr.strip().splitlines()[-1:])}")
        (folder / ".scores-of-a-figure.json").unlink(missing_ok=True)
    return read_detections(kept, annotations)


def run_config(folder: Path, data_root: Path | None) -> Config:
    """Return the config of a run, with the current folder of its data."""
    values = read_yaml(folder / "config.yaml")
    if data_root is not None:
        values["data"]["root"] = str(data_root)
    return parse_config(values, str(folder / "config.yaml"))
