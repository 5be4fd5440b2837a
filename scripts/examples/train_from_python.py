"""The project's detectors with your own data and loop: no annotation files, no train.py.

    python scripts/examples/train_from_python.py

Draws light and dark rectangles, trains a small RetinaNet on them with ALWA and scores it: a minute
on one core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.annotations import Annotations
from data.formats.in_memory import annotations_of
from data.loading import build_eval_loader
from engine.build import build_loader, build_state
from engine.config import Config, load_config
from engine.evaluation.evaluator import detect, score
from engine.process.distributed import start_ranks
from engine.train_step import TrainStep

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("dark", "light")
SIZE = 64


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=320, help="images to train on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        words = [f"data.root={root}", f"data.image_size=[{SIZE}, {SIZE}]", "data.workers=0"]
        words += [f"train.epochs={options.epochs}", "loss.weighting.interval=10"]
        config = load_config(ROOT / "configs/quickstart.yaml", words)
        training, held_out = draw(root, "train", options.pictures), draw(root, "val", 40)
        print(f"mAP {train(config, training, held_out):.3f}")


def draw(root: Path, split: str, count: int) -> Annotations:
    """Write images to disk and return their annotations: put yours here."""
    rng = np.random.default_rng(len(split))
    files, boxes, labels = [], [], []
    for number in range(count):
        pixels = rng.integers(100, 156, (SIZE, SIZE, 3), np.uint8)
        corners, kinds = rng.integers(0, SIZE // 2, (2, 2)), rng.integers(0, 2, 2)
        own = np.hstack([corners, corners + rng.integers(12, SIZE // 2, (2, 2))])
        for (x1, y1, x2, y2), kind in zip(own, kinds, strict=True):
            pixels[y1:y2, x1:x2] = (30, 225)[kind]
        files.append(f"{split}_{number}.png")
        Image.fromarray(pixels).save(root / files[-1])
        boxes.append(own)
        labels.append(kinds)
    return annotations_of(CLASSES, files, [(SIZE, SIZE)] * count, boxes, labels, split=split)


def train(config: Config, training: Annotations, held_out: Annotations) -> float:
    """Train in your own loop; under torchrun every process runs it."""
    with start_ranks(config.train.device) as ranks:
        loader = build_loader(config, training, ranks)
        state = build_state(config, training.classes, len(loader), ranks)
        model = ranks.wrap(state.detector, has_frozen_parts=False)
        train_step = TrainStep(state, model, config.train, ranks, training.files)
        for epoch in range(config.train.epochs):
            model.train()
            for batch in loader.epoch(epoch):
                iteration = train_step([batch])
            train_step.end_epoch()
            losses = {name: f"{loss.item():.3f}" for name, loss in iteration.losses.items()}
            weights = {name: f"{each.item():.3f}" for name, each in iteration.weights.items()}
            print(f"epoch {epoch + 1}: losses {losses}, weights {weights}")
        images = build_eval_loader(config.data, held_out, rank=0, world_size=1)
        found = detect(state.eval_detector.eval(), images, held_out, ranks.device)
        return float(score(found, held_out)["voc"]["area"]["mAP"])


if __name__ == "__main__":
    main()
