from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.annotations import Annotations
from data.config import ShapesConfig
from data.errors import InputError
from data.formats.painting import SHAPES
from data.formats.shapes import draw_shapes, load_shapes
from data.images import read_image

ROOT = Path(__file__).parents[2]
SMALL = ShapesConfig(
    train_images=24,
    val_images=6,
    image_size=(64, 80),
    shapes=("circle", "square", "triangle", "star", "ring", "cross"),
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Annotations]:
    root = tmp_path_factory.mktemp("shapes")
    return root, load_shapes(root, "train", SMALL)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_pictures_and_annotations_are_complete(drawn: tuple[Path, Annotations]) -> None:
    root, annotations = drawn
    assert len(annotations) == 24
    assert len(load_shapes(root, "val", SMALL)) == 6
    assert annotations.classes == SMALL.shapes
    assert set(annotations.labels.tolist()) == set(range(6))
    for row, file in enumerate(annotations.files):
        size_hw = tuple(annotations.sizes[row].tolist())
        assert read_image(root / str(file), size_hw, 10**6).shape == (64, 80, 3)
    counts = np.diff(annotations.offsets)
    assert counts.max() <= 6
    assert 2 <= counts.mean() <= 5


def test_boxes_are_the_tight_boxes_of_the_masks(drawn: tuple[Path, Annotations]) -> None:
    _, annotations = drawn
    for row in range(len(annotations)):
        objects = np.arange(*annotations.offsets[row : row + 2])
        masks = annotations.decode_masks(row, objects)
        assert masks.sum(axis=0).max(initial=0) <= 1, "visible parts share no pixel"
        for mask, number in zip(masks, objects, strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert annotations.boxes[number].tolist() == tight
            assert annotations.areas[number] == mask.sum()


def test_shapes_overlap_and_differ_in_size(drawn: tuple[Path, Annotations]) -> None:
    _, annotations = drawn
    sides = np.sqrt(np.prod(annotations.boxes[:, 2:] - annotations.boxes[:, :2], axis=1))
    assert sides.max() / sides.min() > 3
    overlapping = 0
    for row in range(len(annotations)):
        objects = np.arange(*annotations.offsets[row : row + 2])
        boxes = annotations.boxes[objects]
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            others = np.delete(boxes, i, axis=0)
            meets = (others[:, 0] < x2) & (others[:, 2] > x1)
            overlapping += int((meets & (others[:, 1] < y2) & (others[:, 3] > y1)).any())
    assert overlapping > len(annotations.boxes) / 10


def test_the_drawing_follows_from_the_seed(drawn: tuple[Path, Annotations], tmp_path: Path) -> None:
    again = draw_shapes(tmp_path, SMALL)
    assert digest(again) == digest(drawn[0] / again.name)
    other = draw_shapes(tmp_path, SMALL.model_copy(update={"seed": 1}))
    assert other != again
    assert digest(other)["train/000001.jpg"] != digest(again)["train/000001.jpg"]


def test_more_pictures_leave_those_before_as_they_were(
    drawn: tuple[Path, Annotations], tmp_path: Path
) -> None:
    fewer = draw_shapes(tmp_path, SMALL.model_copy(update={"train_images": 5, "val_images": 1}))
    whole = digest(drawn[0] / str(drawn[1].files[0]).split("/")[0])
    pictures = {name: value for name, value in digest(fewer).items() if name.endswith(".jpg")}
    assert len(pictures) == 6
    assert pictures.items() <= whole.items()


def test_train_and_val_share_no_picture(drawn: tuple[Path, Annotations]) -> None:
    folder = drawn[0] / str(drawn[1].files[0]).split("/")[0]
    pictures = [value for name, value in digest(folder).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == 30


def test_what_is_there_is_not_drawn_again(drawn: tuple[Path, Annotations]) -> None:
    folder = draw_shapes(drawn[0], SMALL)
    before = folder.stat().st_mtime_ns
    assert draw_shapes(drawn[0], SMALL) == folder
    assert folder.stat().st_mtime_ns == before


PROGRAM = """
import sys
from pathlib import Path
from data.config import ShapesConfig
from data.formats.shapes import draw_shapes

print("ready", flush=True)
sys.stdin.readline()
print(draw_shapes(Path(sys.argv[1]), ShapesConfig(train_images=40, val_images=2)).name)
"""


def test_processes_that_draw_at_once_agree_and_leave_nothing_behind(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    names = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {path.name for path in tmp_path.iterdir()} == names
    assert len(names) == 1
    assert len(digest(tmp_path / names.pop())) == 44


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no split 'test'; use train or val"):
        load_shapes(tmp_path, "test", SMALL)
    assert not any(tmp_path.iterdir())


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/shapes: .* set another data\.root"):
        draw_shapes(tmp_path / "file" / "shapes", SMALL)


@pytest.mark.parametrize("name", SHAPES)
def test_every_outline_lies_in_the_unit_circle(name: str) -> None:
    for points in SHAPES[name]():
        assert points.shape[1] == 2
        assert np.hypot(*points.T).max() <= 1 + 1e-12
        area = cv2.contourArea(points.astype(np.float32))
        assert area > 0.5 or name == "ring"


@pytest.mark.parametrize("objects", [(0, 0), (30, 40)])
def test_no_and_very_many_objects_can_be_drawn(tmp_path: Path, objects: tuple[int, int]) -> None:
    config = ShapesConfig(train_images=3, val_images=1, image_size=(32, 40), objects=objects)
    annotations = load_shapes(tmp_path, "train", config)
    assert (len(annotations.boxes) == 0) == (objects == (0, 0))
