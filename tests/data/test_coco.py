"""COCO annotations: equal to pycocotools on real data; strangers' files are refused by name."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from data.annotations import Annotations
from data.errors import InputError
from data.formats import json_stream
from data.formats.coco import load_coco
from data.formats.json_stream import stream_members

SHARED = Path(__file__).parents[2] / "../shared"
REAL_SPLITS = [
    (SHARED / "data/coco_open", "train2017"),
    (SHARED / "data/coco_open", "val2017"),
    (SHARED / "data/dsb2018_nuclei", "train"),
    (SHARED / "data/dsb2018_nuclei", "val"),
]
IMAGE = {"id": 0, "file_name": "a.jpg", "height": 80, "width": 100}
TRIANGLE = [[10.5, 20.25, 40, 20, 40, 60]]
OBJECT = {
    "id": 0,
    "image_id": 0,
    "category_id": 3,
    "bbox": [10, 20, 30, 40],
    "area": 600,
    "iscrowd": 0,
    "segmentation": TRIANGLE,
}
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}, {"id": 0, "name": "cow"}]


def write(root: Path, content: Any, split: str = "val") -> Path:
    (root / "annotations").mkdir(exist_ok=True)
    path = root / f"annotations/instances_{split}.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return root


def coco(**members: Any) -> dict[str, Any]:
    return {"images": [IMAGE], "annotations": [OBJECT], "categories": CATEGORIES} | members


def load(root: Path, **members: Any) -> Annotations:
    return load_coco(write(root, coco(**members)), "val")


def changed(base: dict[str, Any], **values: Any) -> dict[str, Any]:
    return base | values


def without(base: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in base.items() if key not in keys}


@pytest.mark.parametrize(("root", "split"), REAL_SPLITS, ids=lambda value: Path(value).name)
def test_real_data_equals_pycocotools(root: Path, split: str) -> None:
    if not root.exists():
        pytest.skip("needs the real data beside the project")
    ours = load_coco(root, split)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(root / f"annotations/instances_{split}.json"))
    assert ours.image_ids.tolist() == theirs.getImgIds()
    assert ours.category_ids.tolist() == theirs.getCatIds()
    for image, image_id in enumerate(ours.image_ids.tolist()):
        expected = theirs.imgToAnns[image_id]
        rows = np.arange(len(ours.boxes))[ours.objects_of(image)]
        boxes = np.array([item["bbox"] for item in expected]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(ours.boxes[rows], boxes)
        assert ours.areas[rows].tolist() == [item["area"] for item in expected]
        assert ours.crowd[rows].tolist() == [item["iscrowd"] == 1 for item in expected]
        ids = [item["category_id"] for item in expected]
        assert ours.category_ids[ours.labels[rows]].tolist() == ids
        masks = ours.decode_masks(image, rows)
        for mask, item in zip(masks, expected, strict=True):
            assert np.array_equal(mask, theirs.annToMask(item))
    assert ours.dropped == 0


def test_objects_find_their_images_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    rng = random.Random(0)
    images = [changed(IMAGE, id=i * 37 - 50, file_name=f"{i}.jpg") for i in range(20)]
    objects = [
        changed(OBJECT, id=n, image_id=images[n % 7]["id"], bbox=[n, 0, 1, 1]) for n in range(60)
    ]
    for _ in range(5):
        rng.shuffle(images)
        rng.shuffle(objects)
        members = list(coco(images=images, annotations=objects).items())
        rng.shuffle(members)
        loaded = load_coco(write(tmp_path, dict(members)), "val")
        for image, file in enumerate(loaded.files.tolist()):
            number = int(Path(file).stem)
            xs = loaded.boxes[loaded.objects_of(image), 0].tolist()
            assert sorted(xs) == [float(n) for n in range(60) if n % 7 == number]


def test_sparse_category_ids_are_mapped_both_ways(tmp_path: Path) -> None:
    ids = [90, 0, 3, 90]
    loaded = load(
        tmp_path, annotations=[changed(OBJECT, id=n, category_id=c) for n, c in enumerate(ids)]
    )
    assert loaded.classes == ("cat", "dog", "cow")
    assert loaded.labels.tolist() == [1, 2, 0, 1]
    assert loaded.category_ids[loaded.labels].tolist() == ids


@pytest.mark.parametrize(
    "name", ["\u0645\u06cc\u200c\u062e", "\U0001f469\u200d\U0001f33e", "a\xa0b"]
)
def test_joiners_and_no_break_spaces_belong_to_names(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, categories=[{"id": 3, "name": name}]).classes == (name,)


def test_given_classes_decide_the_labels(tmp_path: Path) -> None:
    loaded = load_coco(write(tmp_path, coco()), "val", ["dog", "cat"])
    assert (loaded.classes, loaded.labels.tolist()) == (("dog", "cat"), [1])
    assert loaded.category_ids.tolist() == [90, 3]


def test_what_may_be_missing_is_filled_in(tmp_path: Path) -> None:
    bare = without(OBJECT, "id", "area", "iscrowd", "segmentation")
    loaded = load(tmp_path, annotations=[bare, changed(bare, segmentation=[])])
    assert loaded.areas.tolist() == [1200, 1200]
    assert not loaded.crowd.any()
    assert loaded.masks is None


def test_a_missing_area_is_that_of_the_segmentation(tmp_path: Path) -> None:
    square = changed(without(OBJECT, "area"), segmentation=[[10, 20, 20, 20, 20, 30, 10, 30]])
    runs = changed(square, segmentation={"size": [80, 100], "counts": [100, 7, 7893]})
    assert load(tmp_path, annotations=[square, runs]).areas.tolist() == [100, 7]


def test_a_missing_size_is_read_from_the_image(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    cv2.imwrite(str(tmp_path / "val/a.jpg"), np.zeros((70, 90, 3), np.uint8))
    assert load(tmp_path, images=[without(IMAGE, "height")]).sizes.tolist() == [[70, 90]]


def test_images_without_annotations_stay(tmp_path: Path) -> None:
    images = [changed(IMAGE, id=i, file_name=f"x/{i}.jpg") for i in (5, 0, 6)]
    loaded = load(tmp_path, images=images)
    assert loaded.offsets.tolist() == [0, 0, 1, 1]
    assert loaded.files.tolist() == ["val/x/5.jpg", "val/x/0.jpg", "val/x/6.jpg"]
    assert loaded.names.tolist() == ["x/5", "x/0", "x/6"]


def test_crowds_are_kept_and_not_trained_on(tmp_path: Path) -> None:
    loaded = load(tmp_path, annotations=[changed(OBJECT, iscrowd=1), OBJECT])
    assert loaded.crowd.tolist() == [True, False]
    assert loaded.training_objects(0).tolist() == [1]


def test_boxes_without_area_are_dropped_and_counted_with_their_masks(tmp_path: Path) -> None:
    boxes = [[10, 20, 0, 40], [10, 20, 30, 40], [100, 0, 5, 5], [10, 20, 30, 0]]
    objects = [
        changed(OBJECT, bbox=box, segmentation=[[n, n, 9, n, 9, 9]]) for n, box in enumerate(boxes)
    ]
    loaded = load(tmp_path, annotations=objects)
    assert (loaded.boxes.tolist(), loaded.dropped) == ([[10, 20, 40, 60]], 3)
    assert loaded.masks is not None
    assert loaded.masks.polygons_of(0)[0].tolist() == [1, 1, 9, 1, 9, 9]


def test_duplicate_annotation_ids_do_no_harm(tmp_path: Path) -> None:
    assert len(load(tmp_path, annotations=[OBJECT, OBJECT]).boxes) == 2


def test_ids_may_be_written_with_a_point(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        images=[changed(IMAGE, id=0.0)],
        annotations=[changed(OBJECT, image_id=0.0, category_id=3.0)],
        categories=[{"id": 3.0, "name": "cat"}],
    )
    assert loaded.image_ids.tolist() == [0]
    assert loaded.category_ids.tolist() == [3]
    assert loaded.labels.tolist() == [0]


def test_a_byte_order_mark_and_white_space_do_no_harm(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf \n" + json.dumps(coco(), indent=4).encode() + b"\n\n"
    assert len(load_coco(write(tmp_path, text), "val").boxes) == 1


NO_OBJECTS: dict[str, Any] = {"annotations": []}
BAD_MEMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"images": []}, "lists no images"),
    "images of another type": ({"images": {}}, "'images' is not a list"),
    "annotations of another type": ({"annotations": "x"}, "'annotations' is not a list"),
    "image of another type": ({"images": [5]}, "image number 1: 5 is not an object"),
    "image without id": ({"images": [without(IMAGE, "id")]}, "image number 1: its id is None"),
    "image id of text": ({"images": [changed(IMAGE, id="7")]}, "its id is '7'"),
    "image id too large": ({"images": [changed(IMAGE, id=2**70)]}, "not an integer"),
    "image twice": ({"images": [IMAGE, IMAGE]}, "both have id 0"),
    "file twice": (
        {"images": [changed(IMAGE, id=5), changed(IMAGE, id=7, file_name="./a.jpg")]} | NO_OBJECTS,
        r"the images 5 and 7 both have the file 'a\.jpg'; keep one",
    ),
    "no file name": ({"images": [without(IMAGE, "file_name")]}, "image 0: None is not a file"),
    "parent": ({"images": [changed(IMAGE, file_name="../a.jpg")]}, "image 0: .* may leave"),
    "absolute": ({"images": [changed(IMAGE, file_name="/a.jpg")]}, "may leave the root"),
    "nul": ({"images": [changed(IMAGE, file_name="a\0.jpg")]}, "contains the control character"),
    "surrogate": ({"images": [changed(IMAGE, file_name="\ud800.jpg")]}, "control character"),
    "turned name": ({"images": [changed(IMAGE, file_name="a\u202egpj.exe")]}, "control char"),
    "backslash": ({"images": [changed(IMAGE, file_name="..\\a.jpg")]}, "may leave the root"),
    "size of text": ({"images": [changed(IMAGE, height="80")]}, "height '80' is not a size"),
    "negative size": ({"images": [changed(IMAGE, width=-1)]}, "width -1 is not a size"),
    "huge size": ({"images": [changed(IMAGE, width=2**26)]}, "more than"),
    "no size, no image": ({"images": [without(IMAGE, "width")]}, "the image file is missing"),
    "annotation of another type": ({"annotations": [[]]}, r"number 1 of the file\): \[\]"),
    "no image id": ({"annotations": [without(OBJECT, "image_id")]}, "must be integers"),
    "unknown image": ({"annotations": [changed(OBJECT, image_id=9)]}, "image_id 9 is not among"),
    "unknown category": ({"annotations": [changed(OBJECT, category_id=4)]}, "category_id 4 is not"),
    "category of text": ({"annotations": [changed(OBJECT, category_id="3")]}, "must be integers"),
    "category too large": (
        {"annotations": [changed(OBJECT, category_id=2**64)]},
        "must be integers",
    ),
    "no box": ({"annotations": [without(OBJECT, "bbox")]}, "bbox None must be four numbers"),
    "short box": ({"annotations": [changed(OBJECT, bbox=[1, 2, 3])]}, "must be four numbers"),
    "box of text": ({"annotations": [changed(OBJECT, bbox=list("1234"))]}, "four numbers"),
    "box of objects": ({"annotations": [changed(OBJECT, bbox=[{}, 1, 2, 3])]}, "four numbers"),
    "nan": ({"annotations": [changed(OBJECT, bbox=[1, float("nan"), 3, 4])]}, "not a coordinate"),
    "inf": ({"annotations": [changed(OBJECT, bbox=[1, 2, float("inf"), 4])]}, "not a coordinate"),
    "huge": ({"annotations": [changed(OBJECT, bbox=[1, 2, 3, 1e300])]}, "not a coordinate"),
    "huger": ({"annotations": [changed(OBJECT, bbox=[1, 2, 3, 10**400])]}, "four numbers"),
    "negative width": ({"annotations": [changed(OBJECT, bbox=[1, 2, -3, 4])]}, "negative width"),
    "corners": ({"annotations": [changed(OBJECT, bbox=[60, 50, 90, 70])] * 20}, "are these the co"),
    "area of text": ({"annotations": [changed(OBJECT, area="600")]}, "area '600' must be"),
    "negative area": ({"annotations": [changed(OBJECT, area=-1)]}, "area -1 must be"),
    "huge area": ({"annotations": [changed(OBJECT, area=10**400)]}, "area 1000.* must be"),
    "endless area": ({"annotations": [changed(OBJECT, area=float("inf"))]}, "area inf must be"),
    "crowd of text": ({"annotations": [changed(OBJECT, iscrowd="1")]}, "iscrowd '1' must be"),
    "segmentation": ({"annotations": [changed(OBJECT, segmentation=[[1, 2, 3]])]}, "in pairs"),
    "far segmentation": ({"annotations": [changed(OBJECT, segmentation=[[1e7] * 6])]}, "outside"),
    "categories of text": ({"categories": "cat"}, "'categories' must be a list"),
    "no categories": ({"categories": []}, "'categories' must be a list"),
    "category without id": ({"categories": [{"name": "cat"}]}, "category number 1: its id is None"),
    "category without name": ({"categories": [{"id": 3}]}, "its name is None"),
    "category with control": ({"categories": [{"id": 3, "name": "a\nb"}]}, r"control .* '\\n'"),
    "category with a surrogate": ({"categories": [{"id": 3, "name": "a\ud800"}]}, "control"),
    "category twice": (
        {"categories": [CATEGORIES[0], {"id": 0, "name": "cat"}]},
        "number 2: its name 'cat' is also that of another category; remove the one that no",
    ),
    "id twice": (
        {"categories": [CATEGORIES[0], {"id": 3, "name": "b"}]},
        "its id 3 is also that of",
    ),
}


@pytest.mark.parametrize(("members", "complaint"), BAD_MEMBERS.values(), ids=BAD_MEMBERS.keys())
def test_what_is_wrong_is_named(tmp_path: Path, members: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        load(tmp_path, **members)
    assert "instances_val.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("boxes", "leaving", "refused"), [(10, 6, True), (10, 5, False), (9, 9, False)]
)
def test_most_of_ten_boxes_outside_their_image_are_taken_for_corners(
    tmp_path: Path, boxes: int, leaving: int, refused: bool
) -> None:
    outside = changed(OBJECT, bbox=[60, 50, 90, 70])
    objects = [outside] * leaving + [OBJECT] * (boxes - leaving)
    with pytest.raises(InputError, match="are these the") if refused else contextlib.nullcontext():
        load(tmp_path, annotations=objects)


BAD_BYTES = {
    "no bytes": (b"", "is empty"),
    "a list": (b"[]", "not a JSON object"),
    "text": (b"hello", "not a JSON object"),
    "cut": (json.dumps(coco()).encode()[:-30], "not valid JSON"),
    "cut in a number": (b'{"images": [1', "image number 1"),
    "no value": (b'{"images": }', "not a list"),
    "comma": (b'{"images": [1,]}', "image number 1"),
    "key": (b"{5: 1}", "expected a key, found 5"),
    "key twice": (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    "more": (b'{"a": 1} {"b": 2}', "after the end"),
    "deep": (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
    "digits": (b'{"a": ' + b"9" * 20_000 + b"}", "has no 'categories'|a number is too long"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
    "utf-16": ('{"a": "b"}'.encode("utf-16"), "not UTF-8"),
    "no categories": (b'{"images": [], "annotations": []}', "has no 'categories'"),
    "no annotations": (b'{"images": [], "categories": [{"id": 1, "name": "a"}]}', "has no 'ann"),
}


@pytest.mark.parametrize(("content", "complaint"), BAD_BYTES.values(), ids=BAD_BYTES.keys())
def test_what_is_no_annotation_file_is_named(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        load_coco(write(tmp_path, content), "val")


def test_a_split_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="available splits: val"):
        load_coco(write(tmp_path, coco()), "test")
    with pytest.raises(InputError, match="may leave the root"):
        load_coco(tmp_path, "../val")


def test_classes_none_of_which_is_a_category_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the classes rat, bat is a category .* cat, dog"):
        load_coco(write(tmp_path, coco()), "val", ["rat", "bat"])


def test_a_trained_class_may_be_missing_where_it_has_no_objects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = load_coco(write(tmp_path, coco()), "val", ["rat", "cat"])
    assert annotations.classes == ("rat", "cat")
    assert annotations.labels.tolist() == [1]
    assert len(set(annotations.category_ids.tolist())) == 2
    assert "no category, and so no objects, for class rat" in caplog.text


def test_a_category_with_objects_that_is_not_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class 'cat' .objects: 1, the first in image 'a'"):
        load_coco(write(tmp_path, coco()), "val", ["dog"])


def exhausted(path: Path) -> dict[str, Any]:
    return {
        key: list(value) if key == "array" else value
        for key, value in stream_members(path, ["array"])
    }


@pytest.mark.parametrize("length", [0, 1, 7, (1 << 22) - 60, (1 << 22) + 1, 1 << 23])
def test_streaming_reads_what_the_whole_file_holds(tmp_path: Path, length: int) -> None:
    content = {"first": "é" * length, "array": ["x" * length, 12, {"a": [1.5]}], "last": 1.25e-3}
    path = tmp_path / "a.json"
    for indent in (None, 2):
        path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert exhausted(path) == content


@pytest.mark.parametrize("size", range(1, 9))
def test_values_that_a_window_cuts_are_read_whole(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", size)
    content = {"version": 1.5, "big": -12.25e-3, "array": [1.5, 2e3, 17, "a, 1", {"b": [0.5]}]}
    path = tmp_path / "a.json"
    for text in (json.dumps(content), json.dumps(content, indent=1)):
        path.write_text(text)
        assert exhausted(path) == content


def mutants(valid: bytes, count: int) -> Iterator[bytes]:
    """Half of them with another value in one place, half with other bytes anywhere."""
    rng = random.Random(0)
    values = [
        b"0",
        b"-3",
        b"7.5",
        b"1e999",
        b"NaN",
        b"null",
        b"true",
        b'"x"',
        b"[]",
        b"{}",
        b"[[1]]",
    ]
    scraps = [bytes([byte]) for byte in b'{}[]",:-9\\\0\xff'] + [b"9" * 30, b"\\ud800", b"../"]
    places = [match.span() for match in re.finditer(rb"[-\d.]+|\"[^\"]*\"|\[[^][]*\]", valid)]
    for number in range(count):
        if number % 2:
            start, stop = rng.choice(places)
            yield valid[:start] + rng.choice(values) + valid[stop:]
        else:
            start = rng.randrange(len(valid))
            yield valid[:start] + rng.choice(scraps) + valid[start + rng.choice([0, 1, 8]) :]


def test_mutated_annotations_raise_nothing_but_input_errors(tmp_path: Path) -> None:
    runs = changed(OBJECT, id=1, segmentation={"size": [80, 100], "counts": [100, 7, 7893]})
    counts = coco_mask.frPyObjects([runs["segmentation"]], 80, 100)[0]["counts"].decode()
    text = changed(OBJECT, id=2, segmentation={"size": [80, 100], "counts": counts})
    valid = json.dumps(coco(annotations=[OBJECT, runs, text])).encode()
    loaded = 0
    for mutant in mutants(valid, 1000):
        try:
            annotations = load_coco(write(tmp_path, mutant), "val")
        except InputError:
            continue
        loaded += 1
        assert np.isfinite(annotations.boxes).all()
        annotations.decode_masks(0, annotations.training_objects(0))
    assert loaded > 100
