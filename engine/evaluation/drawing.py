"""Draw detections beside the ground truth."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from data.annotations import Annotations
from data.images import Pixels
from engine.evaluation.detections import Detections
from engine.process.atomic_file import write_atomically

Color = tuple[int, int, int]

BACKGROUND: Color = (24, 24, 27)
TEXT: Color = (228, 228, 231)
GREY: Color = (161, 161, 170)
FONT, LINE = cv2.FONT_HERSHEY_SIMPLEX, cv2.LINE_AA
CAPTION_HEIGHT, GAP = 26, 8
MASK_OPACITY = 0.4
TEXT_SIZE = 0.42
UNSCALED_SIDE = (
    600  # pixels: above this short side, lines and text of a full-size image scale with it
)
MAX_ASPECT_RATIO = 1.8  # maximum ratio of width to height of an image in the picture


@dataclass(frozen=True)
class DrawnObject:
    """One object to draw; box and mask are in pixels of the original image."""

    box: npt.NDArray[np.float64]
    caption: str
    color: Color
    mask: Pixels | None = None


def draw_grid(
    images: Sequence[Pixels],
    rows: Sequence[int],
    annotations: Annotations,
    detections: Detections,
    columns: int = 2,
    height: int = 360,
) -> Pixels:
    """Draw several images, each as a pair: ground truth on the left, detections on the right.

    Args:
        images: ``(H, W, 3)`` uint8 RGB, original images.
        rows: their rows in the annotations.
        annotations: the ground truth; difficult objects and crowds are drawn grey.
        detections: detections of the split; those with scores below 0.5 are not drawn.
        columns: number of pairs per line.
        height: height of each image in the picture in pixels, less for very wide images.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    pairs = [
        draw_pair(image, row, annotations, detections, height=height)
        for image, row in zip(images, rows, strict=True)
    ]
    lines = [
        _join(pairs[start : start + columns], axis=1) for start in range(0, len(pairs), columns)
    ]
    return _join(lines, axis=0)


def draw_pair(
    image: Pixels,
    row: int,
    annotations: Annotations,
    detections: Detections,
    score_threshold: float = 0.5,
    height: int = 360,
) -> Pixels:
    """Draw one image twice: with its ground truth and with its detections.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, original image.
        row: its row in the annotations.
        annotations: the ground truth; difficult objects and crowds are drawn grey.
        detections: detections of the split.
        score_threshold: minimum score to draw.
        height: height of the image in the picture in pixels, less for very wide images.
    """
    truth = _true_objects(row, annotations)
    found = _found_objects(row, annotations, detections, score_threshold)
    name = str(annotations.names[row])
    return _join(
        [
            draw_panel(image, truth, f"ground truth: {len(truth)}", name, height),
            draw_panel(
                image, found, f"detections >= {score_threshold:.2f}: {len(found)}", "", height
            ),
        ],
        axis=1,
    )


def draw_detections(
    image: Pixels,
    row: int,
    annotations: Annotations,
    detections: Detections,
    score_threshold: float = 0.5,
) -> Pixels:
    """Draw the detections of an image into a full-size copy of it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, original image.
        row: its row in the annotations.
        annotations: class names and image sizes.
        detections: detections of the split.
        score_threshold: minimum score to draw.
    """
    canvas = image.copy()
    found = _found_objects(row, annotations, detections, score_threshold)
    draw_objects(canvas, found, 1.0, max(1.0, min(canvas.shape[:2]) / UNSCALED_SIDE))
    return canvas


def draw_objects(
    canvas: Pixels, objects: Sequence[DrawnObject], scale: float, thickness: float = 1.0
) -> None:
    """Draw objects into an image, later ones over earlier ones.

    Args:
        canvas: ``(H, W, 3)`` uint8 RGB, changed in place.
        objects: objects in pixels of the original image.
        scale: size of the canvas relative to the original image.
        thickness: thickness of lines and text.
    """
    for drawn in objects:
        if drawn.mask is not None:
            _blend_mask(canvas, drawn.mask, drawn.color, thickness)
    for drawn in objects:
        _draw_box(canvas, drawn, scale, thickness)
    _draw_tags(canvas, objects, scale, thickness)


def write_png(path: str | Path, picture: Pixels) -> None:
    """Write an ``(H, W, 3)`` uint8 RGB image as PNG.

    Raises:
        InputError: the file cannot be written.
    """
    _, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    write_atomically(path, encoded.tobytes())


def color_of(label: int) -> Color:
    """A bright color for a class; neighbors in the list of classes differ most (golden ratio)."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + label * 0.6180339887) % 1, 0.72, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def _true_objects(row: int, annotations: Annotations) -> list[DrawnObject]:
    objects = np.arange(len(annotations.boxes))[annotations.objects_of(row)]
    masks: Sequence[Pixels | None] = [None] * len(objects)
    if annotations.masks is not None:
        masks = list(annotations.decode_masks(row, objects))
    return [
        _true_object(annotations, int(index), mask)
        for index, mask in zip(objects, masks, strict=True)
    ]


def _true_object(annotations: Annotations, index: int, mask: Pixels | None) -> DrawnObject:
    label = int(annotations.labels[index])
    caption, color = _class_name(annotations, label), color_of(label)
    if annotations.crowd[index]:
        caption, color = f"{caption} (crowd)".strip(), GREY
    elif annotations.difficult[index]:
        caption, color = f"{caption} (difficult)".strip(), GREY
    return DrawnObject(annotations.boxes[index], caption, color, mask)


def _found_objects(
    row: int, annotations: Annotations, detections: Detections, score_threshold: float
) -> list[DrawnObject]:
    """The detections of an image by ascending score, so that the best are drawn on top."""
    chosen = np.flatnonzero((detections.image == row) & (detections.score >= score_threshold))
    chosen = chosen[np.argsort(detections.score[chosen], kind="stable")]
    found = []
    for index in chosen.tolist():
        label, mask = int(detections.label[index]), None
        if detections.rles is not None:
            size = annotations.sizes[row].tolist()
            mask = coco_mask.decode({"size": size, "counts": detections.rles[index]})
        caption = f"{_class_name(annotations, label)} {detections.score[index]:.2f}".strip()
        found.append(DrawnObject(detections.boxes[index], caption, color_of(label), mask))
    return found


def _class_name(annotations: Annotations, label: int) -> str:
    """The class name; empty if there is only one class, where it would waste space."""
    return annotations.classes[label] if len(annotations.classes) > 1 else ""


def draw_panel(
    image: Pixels, objects: Sequence[DrawnObject], left: str, right: str, height: int
) -> Pixels:
    """Draw an image with its objects, ``height`` pixels high, below a strip with two captions."""
    scale = min(height / image.shape[0], MAX_ASPECT_RATIO * height / image.shape[1])
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)
    draw_objects(canvas, objects, scale)
    width = canvas.shape[1]
    strip = np.full((CAPTION_HEIGHT, width, 3), BACKGROUND, dtype=np.uint8)
    _put_text(strip, left, (2, 17), TEXT)
    (text_width, _), _ = cv2.getTextSize(right, FONT, TEXT_SIZE, 1)
    _put_text(strip, right, (width - text_width - 2, 17), GREY)
    return np.concatenate([strip, canvas])


def _blend_mask(canvas: Pixels, mask: Pixels, color: Color, thickness: float) -> None:
    """Tint the pixels of a mask and draw its outline."""
    height, width = canvas.shape[:2]
    inside = mask.astype(bool)
    if mask.shape != (height, width):
        smooth = cv2.resize(mask.astype(np.float32), (width, height))
        inside = smooth > 0.5
    tinted = canvas[inside] * (1 - MASK_OPACITY) + np.array(color) * MASK_OPACITY
    canvas[inside] = tinted.astype(np.uint8)
    edges, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, edges, -1, color, round(thickness), LINE)


def _draw_box(canvas: Pixels, drawn: DrawnObject, scale: float, thickness: float) -> None:
    x1, y1, x2, y2 = np.rint(drawn.box * scale).astype(int).tolist()
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), drawn.color, round(2 * thickness), LINE)


def _draw_tags(
    canvas: Pixels, objects: Sequence[DrawnObject], scale: float, thickness: float
) -> None:
    """Draw captions on filled tags at the top left corners of the boxes, inside the image.

    The last object comes first; a tag that would overlap another one is left out, so that crowded
    images stay readable (the color shows the class).
    """
    taken = np.zeros(canvas.shape[:2], dtype=bool)
    margin = round(2 * thickness)
    for drawn in reversed(objects):
        (width, height), base = cv2.getTextSize(
            drawn.caption, FONT, TEXT_SIZE * thickness, round(thickness)
        )
        x, y = np.rint(drawn.box[:2] * scale).astype(int).tolist()
        x = max(0, min(x - 1, canvas.shape[1] - width - 2 * margin))
        top = max(0, y - height - base - 1)
        place = (slice(top, top + height + base + 1), slice(x, x + width + 2 * margin))
        if not drawn.caption or taken[place].any():
            continue
        taken[place] = True
        canvas[place] = drawn.color
        brightness = np.dot(drawn.color, (0.299, 0.587, 0.114))
        ink = BACKGROUND if brightness > 120 else TEXT
        _put_text(canvas, drawn.caption, (x + margin, top + height + margin), ink, thickness)


def _put_text(
    canvas: Pixels, text: str, origin: tuple[int, int], color: Color, thickness: float = 1.0
) -> None:
    size, width = TEXT_SIZE * thickness, round(thickness)
    cv2.putText(canvas, text, origin, FONT, size, color, width, LINE)


def _join(pictures: Sequence[Pixels], axis: int) -> Pixels:
    """Join pictures in a column (axis 0) or a row (axis 1), separated by background."""
    shapes = np.array([picture.shape[:2] for picture in pictures])
    shape = shapes.max(axis=0)
    shape[axis] = shapes[:, axis].sum() + GAP * (len(pictures) - 1)
    canvas: Pixels = np.full((*shape.tolist(), 3), BACKGROUND, dtype=np.uint8)
    corner = np.zeros(2, dtype=int)
    for picture, size in zip(pictures, shapes, strict=True):
        (top, left), (bottom, right) = corner, corner + size
        canvas[top:bottom, left:right] = picture
        corner[axis] += size[axis] + GAP
    return canvas
