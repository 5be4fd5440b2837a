"""Pictures: what is drawn stands where it should, and any image can be drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from annotated import annotate
from pycocotools import mask as coco_mask

from engine.evaluation.detections import Detections, make_detections
from engine.evaluation.drawing import CAPTION_HEIGHT, GAP, color_of, draw_grid, draw_pair, write_png

BOX = (20.0, 30.0, 60.0, 70.0)
NOTHING = make_detections([], [], [], [])


def grey(height: int = 100, width: int = 120) -> np.ndarray:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def one(score: float, rles: list[bytes] | None = None) -> Detections:
    return make_detections([0], [1], [score], [BOX], rles)


def panels(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two images of a pair of 100 x 120 pixels."""
    below = picture[CAPTION_HEIGHT:]
    return below[:, :120], below[:, 120 + GAP :]


def has_color(panel: np.ndarray, label: int) -> bool:
    return bool((np.abs(panel.astype(int) - color_of(label)).max(axis=2) < 8).any())


def test_ground_truth_stands_left_and_detections_right() -> None:
    annotations = annotate([(0, 0, BOX)])
    left, right = panels(draw_pair(grey(), 0, annotations, one(0.9), height=100))
    assert has_color(left, 0)
    assert not has_color(left, 1)
    assert has_color(right, 1)
    assert not has_color(right, 0)


def test_detections_below_the_threshold_and_of_other_images_are_not_drawn() -> None:
    annotations = annotate(images=2)
    _, right = panels(draw_pair(grey(), 0, annotations, one(0.4), 0.5, height=100))
    np.testing.assert_array_equal(right, grey())
    _, right = panels(draw_pair(grey(), 1, annotations, one(0.9), 0.5, height=100))
    np.testing.assert_array_equal(right, grey())


def test_a_box_is_drawn_on_its_border_at_the_scale_of_the_picture() -> None:
    annotations = annotate([(0, 0, BOX)])
    picture = draw_pair(grey(), 0, annotations, NOTHING, height=200)
    panel = picture[CAPTION_HEIGHT:, :240]
    for x, y in ((2 * 60 - 1, 100), (80, 2 * 70 - 1), (2 * 20, 100)):
        assert np.abs(panel[y, x].astype(int) - color_of(0)).max() < 8
    assert (panel[100, 80] == 90).all()  # inside
    assert (panel[100, 150] == 90).all()  # outside


def test_a_mask_tints_its_pixels_only() -> None:
    mask = np.zeros((100, 120), dtype=np.uint8, order="F")
    mask[30:50, 20:60] = 1  # the upper half of the box
    detections = one(0.9, [coco_mask.encode(mask)["counts"]])
    _, right = panels(draw_pair(grey(), 0, annotate(), detections, height=100))
    tinted = (right[40, 40].astype(int) - 90) * (np.array(color_of(1)) - 90)
    assert (tinted > 0).all()
    assert (right[60, 40] == 90).all()


def test_a_grid_holds_all_pairs_and_leaves_the_images_alone() -> None:
    annotations = annotate([(0, 0, BOX)], images=3)
    images = [grey(100, 120), grey(120, 60), grey(50, 50)]
    picture = draw_grid(images, [0, 1, 2], annotations, one(0.9), columns=2, height=100)
    assert picture.dtype == np.uint8
    widths = [120 * 2 + GAP, 50 * 2 + GAP]
    assert picture.shape == (2 * (100 + CAPTION_HEIGHT) + GAP, sum(widths) + GAP, 3)
    assert all((image == 90).all() for image in images)


@pytest.mark.parametrize("name", ["größe", "细胞"])
def test_letters_beyond_ascii_are_drawn(name: str) -> None:
    """OpenCV 4 draws a question mark for each of their bytes."""
    marks = name.encode().decode("ascii", "replace").replace("\ufffd", "?")
    truth = [(0, 0, BOX)]
    real, lost = (annotate(truth, classes=[text, "dog"]) for text in (name, marks))
    pictures = [draw_pair(grey(), 0, each, NOTHING, height=100) for each in (real, lost)]
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 10_000), (3000, 3)])
def test_images_of_any_shape_can_be_drawn(height: int, width: int) -> None:
    annotations = annotate([(0, 0, (0.0, 0.0, width, height))], size=(height, width))
    detections = make_detections([0], [0], [0.9], [(-5.0, -5.0, width + 9.0, height + 9.0)])
    picture = draw_pair(grey(height, width), 0, annotations, detections, height=100)
    assert picture.shape[0] <= 100 + CAPTION_HEIGHT
    assert picture.shape[1] < 1000


def test_classes_have_colors_of_their_own() -> None:
    assert len({color_of(label) for label in range(80)}) == 80


def test_a_png_holds_the_very_pixels(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    write_png(tmp_path / "new" / "picture.png", picture)
    read = cv2.imread(str(tmp_path / "new" / "picture.png"))
    np.testing.assert_array_equal(cv2.cvtColor(read, cv2.COLOR_BGR2RGB), picture)
