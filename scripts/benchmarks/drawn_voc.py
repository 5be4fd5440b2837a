"""A VOC devkit of synthetic images: JPEGs with VOC's pixel size and about VOC's file size."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

# torchvision accepts only VOC's own class names.
CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow")
SIZE_HW = (375, 500)
OBJECTS = (1, 5)  # fewest and most per image
QUALITY = 92
GRAIN = 9.0  # standard deviation of the noise: with it a file has about 75 kB
YEAR, SPLIT = "2007", "trainval"


def draw_devkit(root: Path, images: int) -> Path:
    """Write ``root/VOCdevkit/VOC2007`` and return its path."""
    folder = root / "VOCdevkit" / f"VOC{YEAR}"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{number:06d}" for number in range(images)]
    for name in names:
        boxes = _random_boxes(rng)
        picture = _draw(rng, boxes)
        cv2.imwrite(
            str(folder / f"JPEGImages/{name}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        )
        labels = rng.choice(CLASSES, len(boxes)).tolist()
        (folder / f"Annotations/{name}.xml").write_text(_as_xml(name, boxes, labels))
    (folder / f"ImageSets/Main/{SPLIT}.txt").write_text("\n".join(names) + "\n")
    return folder


def _random_boxes(rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Return random boxes in VOC's format: pixels from 1, the last one included."""
    boxes = []
    for _ in range(rng.integers(OBJECTS[0], OBJECTS[1] + 1)):
        height, width = (int(rng.integers(30, side // 2)) for side in SIZE_HW)
        top = int(rng.integers(1, SIZE_HW[0] - height))
        left = int(rng.integers(1, SIZE_HW[1] - width))
        boxes.append((left, top, left + width, top + height))
    return boxes


def _draw(rng: np.random.Generator, boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """``(H, W, 3)`` uint8: clouds, filled ellipses and grain."""
    clouds = rng.integers(0, 256, (12, 16, 3)).astype(np.float32)
    picture = cv2.resize(clouds, SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC)
    for left, top, right, bottom in boxes:
        center, axes = ((left + right) // 2, (top + bottom) // 2), (right - left, bottom - top)
        color = rng.integers(0, 256, 3).tolist()
        half = (axes[0] // 2, axes[1] // 2)
        cv2.ellipse(picture, center, half, 0, 0, 360, color, thickness=-1)
    noisy = picture + rng.normal(0, GRAIN, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _as_xml(name: str, boxes: list[tuple[int, int, int, int]], labels: list[str]) -> str:
    objects = "".join(
        f"<object><name>{label}</name><pose>Left</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for box, label in zip(boxes, labels, strict=True)
    )
    height, width = SIZE_HW
    return (
        f"<annotation><folder>VOC{YEAR}</folder><filename>{name}.jpg</filename>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        f"<segmented>0</segmented>{objects}</annotation>"
    )
