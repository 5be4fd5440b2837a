"""VOC annotations: coordinates, splits, files; and what is wrong with them is said, not thrown."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.annotations import Annotations
from data.errors import InputError
from data.formats.voc import VOC_CLASSES, load_voc
from data.formats.voc_images import images_by_stem
from data.image_sizes import Access

SHARED = Path(__file__).parents[2] / "../shared"
BCCD = SHARED / "data/bccd"
DEVKIT = SHARED / "fixtures/voc_devkit"
BOMB = (
    '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]>'
    "<annotation><filename>&y;</filename></annotation>"
)
EXTERNAL = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><filename>&x;</filename></annotation>"
)


def voc_object(
    box: tuple[object, ...] = (11, 21, 30, 40), name: str = "cat", extra: str = ""
) -> str:
    corners = "".join(
        f"<{tag}>{value}</{tag}>"
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def annotation(
    *objects: str,
    filename: str | None = None,
    size: str = "<width>100</width><height>80</height>",
) -> str:
    file = "" if filename is None else f"<filename>{filename}</filename>"
    return f"<annotation>{file}<size>{size}</size>{''.join(objects)}</annotation>"


def write_voc(
    root: Path, xml: dict[str, str | bytes], split: str = "train", lines: str | None = None
) -> Path:
    """A VOC root of annotations (no images); the split lists all of them."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in xml.items():
        content = text.encode() if isinstance(text, str) else text
        path = root / f"Annotations/{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    listed = "\n".join(xml) if lines is None else lines
    (root / f"ImageSets/Main/{split}.txt").write_text(listed)
    return root


def load_one(root: Path, *objects: str, **options: object) -> Annotations:
    return load_voc(write_voc(root, {"a": annotation(*objects)}), ["train"], **options)


def test_one_based_inclusive_boxes_become_continuous_ones(tmp_path: Path) -> None:
    assert load_one(tmp_path, voc_object()).boxes.tolist() == [[10, 20, 30, 40]]


def test_writing_a_box_the_way_comp4_files_do_gives_the_file_s_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(1, 80, (50, 2, 2)), axis=1)
    corners[:, 1] += 1
    written = corners.reshape(50, 4)
    boxes = load_one(tmp_path, *[voc_object(tuple(box)) for box in written.tolist()]).boxes
    assert np.array_equal(boxes + np.array([1, 1, 0, 0]), written)


def test_zero_based_boxes_are_taken_as_they_are(tmp_path: Path) -> None:
    box = (0, 0.5, 30, 40)
    assert load_one(tmp_path, voc_object(box), zero_based=True).boxes.tolist() == [list(box)]


def test_boxes_are_clipped_to_their_image_and_never_negative(tmp_path: Path) -> None:
    boxes = load_one(tmp_path, voc_object((0, -7, 30, 40)), voc_object((90, 70, 101, 99))).boxes
    assert boxes.tolist() == [[0, 0, 30, 40], [89, 69, 100, 80]]


def test_boxes_without_area_are_dropped_and_counted(tmp_path: Path) -> None:
    flat, line, outside = (5, 5, 5, 5), (5, 5, 9, 5), (101, 5, 120, 9)
    annotations = load_one(tmp_path, *map(voc_object, (flat, (1, 1, 9, 9), line, outside)))
    assert annotations.boxes.tolist() == [[0, 0, 9, 9]]
    assert annotations.dropped == 3


def test_difficult_objects_are_kept_and_marked(tmp_path: Path) -> None:
    marks = ["", "<difficult>0</difficult>", "<difficult>1</difficult>"]
    annotations = load_one(tmp_path, *[voc_object(extra=mark) for mark in marks])
    assert annotations.difficult.tolist() == [False, False, True]
    assert annotations.training_objects(0).tolist() == [0, 1]


@pytest.mark.parametrize("word", ["1", "yes", "True", "", "0", "no", "False", "Unspecified"])
def test_difficult_may_be_written_in_words(tmp_path: Path, word: str) -> None:
    annotations = load_one(tmp_path, voc_object(extra=f"<difficult>{word}</difficult>"))
    assert annotations.difficult.tolist() == [word in ("1", "yes", "True")]


def test_parts_of_an_object_are_not_objects(tmp_path: Path) -> None:
    head = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    assert load_one(tmp_path, voc_object(extra=head)).boxes.tolist() == [[10, 20, 30, 40]]


def test_names_of_voc_give_its_20_classes_in_their_order(tmp_path: Path) -> None:
    annotations = load_one(tmp_path, voc_object(name="tvmonitor"), voc_object(name="bird"))
    assert annotations.classes == VOC_CLASSES
    assert [VOC_CLASSES[label] for label in annotations.labels] == ["tvmonitor", "bird"]


def test_other_names_are_sorted(tmp_path: Path) -> None:
    annotations = load_one(tmp_path, voc_object(name="tree"), voc_object(name="cat"))
    assert annotations.classes == ("cat", "tree")
    assert annotations.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "name", ["\u0645\u06cc\u200c\u062e", "\U0001f469\u200d\U0001f33e", "a\xa0b"]
)
def test_joiners_and_no_break_spaces_belong_to_names(tmp_path: Path, name: str) -> None:
    assert load_one(tmp_path, voc_object(name=name)).classes == (name,)


def test_given_classes_decide_the_labels(tmp_path: Path) -> None:
    annotations = load_one(tmp_path, voc_object(name="cat"), classes=["tree", "cow", "cat"])
    assert annotations.classes == ("tree", "cow", "cat")
    assert annotations.labels.tolist() == [2]
    assert annotations.category_ids.tolist() == [1, 2, 3]


def test_images_without_objects_stay(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"a": annotation(), "b": annotation(voc_object())})
    assert load_voc(root, ["train"]).offsets.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("filename", "present", "expected"),
    [
        ("a.jpg", ["a.jpg", "a.png"], "a.jpg"),
        (None, ["a.JPG"], "a.JPG"),
        (None, ["a.bmp", "a.png", "a.jpg"], "a.jpg"),
        ("other.jpg", ["a.png", "a.JPEG"], "a.JPEG"),
        ("a", ["a.jpeg"], "a.jpeg"),
        ("other.png", ["other.png", "a.jpg"], "a.jpg"),
        ("other.png", ["other.png"], "other.png"),
        ("other.png", ["other.jpg"], "other.jpg"),
        ("a.png", ["a.jpg", "a.png"], "a.png"),
        ("a.jpg", ["a.png"], "a.png"),
        ("gone.jpg", ["a.png"], "a.png"),
        ("v1.2", ["v1.2.png"], "v1.2.png"),
        ("gone.jpg", [], "gone.jpg"),
        (None, [], "a.jpg"),
        ("b/a.jpg", ["a.jpg", "b/a.jpg"], "a.jpg"),
        ("b/a.jpg", ["c.jpg", "b/a.jpg"], "b/a.jpg"),
        ("b/a.jpg", ["c.jpg", "b/a.JPG"], "b/a.JPG"),
        ("b/a.jpg", ["a.jpg"], "a.jpg"),
        ("/home/me/pictures/b.jpg", ["a.jpg", "b.jpg"], "a.jpg"),
        ("C:\\pictures\\a.jpg", ["a.png"], "a.png"),
        ("../JPEGImages/a.jpg", ["a.jpg"], "a.jpg"),
        ("x" * 300, ["a.jpg"], "a.jpg"),
    ],
)
def test_the_image_is_found_by_the_annotation_s_name_else_by_filename(
    tmp_path: Path, filename: str | None, present: list[str], expected: str
) -> None:
    root = write_voc(tmp_path, {"a": annotation(filename=filename)})
    for name in present:
        (root / "JPEGImages" / name).parent.mkdir(exist_ok=True)
        (root / "JPEGImages" / name).touch()
    assert load_voc(root, ["train"]).files.tolist() == [f"JPEGImages/{expected}"]


@pytest.mark.parametrize("present", ["b/a.jpg", "b/a.PNG"])
def test_an_annotation_in_a_folder_has_its_image_in_that_folder(
    tmp_path: Path, present: str
) -> None:
    (tmp_path / "Annotations/b").mkdir(parents=True)
    (tmp_path / "JPEGImages/b").mkdir(parents=True)
    (tmp_path / "JPEGImages" / present).touch()
    root = write_voc(tmp_path, {"b/a": annotation()})
    assert load_voc(root, ["train"]).files.tolist() == [f"JPEGImages/{present}"]


def test_an_image_in_a_linked_folder_is_found_inside_the_root_and_outside_on_request(
    tmp_path: Path,
) -> None:
    root = write_voc(tmp_path / "voc", {"sub/a": annotation(filename="a.png")})
    for place in (root / "elsewhere", tmp_path / "outside"):
        place.mkdir()
        (place / "a.png").touch()
        (place / "again").symlink_to(place)
    link = root / "JPEGImages/sub"
    link.symlink_to(root / "elsewhere")
    assert load_voc(root, ["train"]).files.tolist() == ["JPEGImages/sub/a.png"]
    link.unlink()
    link.symlink_to(tmp_path / "outside")
    trusting = load_voc(root, ["train"], access=Access(follow_links=True))
    assert trusting.files.tolist() == ["JPEGImages/sub/a.png"]
    assert load_voc(root, ["train"]).files.tolist() == ["JPEGImages/a.png"]


def test_folders_that_all_link_to_each_other_are_not_walked_for_ever(tmp_path: Path) -> None:
    places = [tmp_path / f"JPEGImages/{letter}" for letter in "abcdefgh"]
    for place in places:
        place.mkdir(parents=True)
        (place / "1.jpg").touch()
        for other in places:
            if other != place:
                (place / other.name).symlink_to(other)
    listing = images_by_stem(tmp_path / "JPEGImages", tmp_path)
    assert {"a/1", "a/b/1", "a/b/c/1", "h/g/f/1"} <= listing.keys()
    assert "a/b/c/d/1" not in listing
    assert "a/b/a/1" not in listing


@pytest.mark.parametrize("size", ["", "<width>0</width><height>0</height>"])
def test_a_missing_size_is_read_from_the_image(tmp_path: Path, size: str) -> None:
    root = write_voc(tmp_path, {"a": annotation(size=size)})
    cv2.imwrite(str(root / "JPEGImages/a.jpg"), np.zeros((30, 50, 3), np.uint8))
    assert load_voc(root, ["train"]).sizes.tolist() == [[30, 50]]


def test_years_of_a_devkit_are_concatenated(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        write_voc(tmp_path / year, {"a": annotation(voc_object())}, split="trainval")
    annotations = load_voc(tmp_path, ["VOC2007/trainval", "VOC2012/trainval"])
    assert annotations.split == "trainval"
    assert annotations.names.tolist() == ["a", "a"]
    assert annotations.files.tolist() == [f"VOC{y}/JPEGImages/a.jpg" for y in (2007, 2012)]
    assert annotations.image_ids.tolist() == [1, 2]


def test_flags_behind_the_names_of_a_split_are_no_part_of_them(tmp_path: Path) -> None:
    names = {"a": annotation(), "b": annotation(), "c 1": annotation(), "d": annotation()}
    write_voc(tmp_path, names, lines="\ufeffa  1\r\nb -1\n\nc 1\nd\t0\n")
    assert load_voc(tmp_path, ["train"]).names.tolist() == ["a", "b", "c 1", "d"]


BAD_XML = {
    "no bytes": ("", "not valid XML"),
    "cut": ("<annotation><object>", "not valid XML"),
    "text": ("hello", "not valid XML"),
    "binary": (b"\xff\xd8\xff\xe0\0\0", "not valid XML"),
    "foreign": ("<svg/>", "root is <svg>"),
    "bomb": (BOMB, "DTD or entities"),
    "external entity": (EXTERNAL, "DTD or entities"),
    "encoding": ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not valid XML"),
    "no name": (annotation("<object><bndbox/></object>"), "object 1: its <name> is ''"),
    "control": (
        annotation(voc_object(name="c\x85t")),
        r"'c\\x85t' contains the control .* '\\x85'",
    ),
    "no box": (annotation("<object><name>cat</name></object>"), r"object 1 \('cat'\): has no"),
    "no corner": (annotation("<object><name>c</name><bndbox/></object>"), "<xmin> is 'missing'"),
    "text corner": (annotation(voc_object((1, "x", 3, 4))), "<ymin> is 'x'"),
    "nan": (annotation(voc_object((1, 2, "nan", 4))), "<xmax> is 'nan'"),
    "inf": (annotation(voc_object((1, 2, 3, "-inf"))), "<ymax> is '-inf'"),
    "huge": (annotation(voc_object((1, 2, 3, "1e300"))), "<ymax> is '1e300'"),
    "x, y, w, h": (annotation(voc_object((50, 60, 20, 10))), "is this x, y, width, height"),
    "difficult": (annotation(voc_object(extra="<difficult>?</difficult>")), "write 0 or 1"),
    "text size": (annotation(size="<width>wide</width>"), "<width> is 'wide'"),
    "negative size": (annotation(size="<width>-5</width>"), "<width> is '-5'"),
    "huge size": (annotation(size="<width>4e6</width><height>4e6</height>"), "more than"),
    "no size, no image": (annotation(size=""), "no height and width"),
    "parent": (annotation(filename="../x.jpg"), "may leave the root"),
    "hidden parent": (annotation(filename="a/../../x.jpg"), "may leave the root"),
    "absolute": (annotation(filename="/etc/passwd"), "may leave the root"),
    "drive": (annotation(filename="C:/x.jpg"), "may leave the root"),
    "backslash": (annotation(filename="a\\x.jpg"), "may leave the root"),
    "long": (annotation(filename="x" * 300), "too long"),
}


@pytest.mark.parametrize(("text", "complaint"), BAD_XML.values(), ids=BAD_XML.keys())
def test_a_bad_annotation_is_named_with_its_object(
    tmp_path: Path, text: str | bytes, complaint: str
) -> None:
    root = write_voc(tmp_path, {"good": annotation(), "bad": text})
    with pytest.raises(InputError, match=complaint) as error:
        load_voc(root, ["train"])
    assert "\n" not in str(error.value)
    assert "bad" in str(error.value)


BAD_SPLITS = {
    "unknown": ("test", "a", "split not found; available splits: train"),
    "leaving": ("../train", "a", "may leave the root"),
    "empty": ("train", " \n", "lists no images"),
    "twice": ("train", "a\na", "'a' is listed twice"),
    "no annotation": ("train", "a\nb", r"b\.xml: annotation not found"),
    "leaving name": ("train", "../a", "line 1: the file name '../a' may leave"),
    "leaving name and flag": ("train", "../a\t1", "line 1: the file name '../a 1' may leave"),
    "image": ("train", "a.jpg", "line 1: 'a.jpg': must be a name .*; write 'a'"),
    "image and flag": ("train", "a.jpg  1", "must be a name .*; write 'a'"),
    "path": ("train", "JPEGImages/a.png", "must be a name .*; write 'a'"),
    "annotation": ("train", "a.xml", "must be a name .*; write 'a'"),
    "no flag": ("train", "a 2", r"a 2\.xml: annotation not found"),
    "not text": ("binary", "a", "is not text"),
}


@pytest.mark.parametrize(("split", "lines", "complaint"), BAD_SPLITS.values(), ids=BAD_SPLITS)
def test_a_bad_split_is_named(tmp_path: Path, split: str, lines: str, complaint: str) -> None:
    root = write_voc(tmp_path, {"a": annotation()}, lines=lines)
    if split == "binary":
        (root / "ImageSets/Main/binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=complaint):
        load_voc(root, [split])


def test_a_devkit_lists_its_years_where_one_is_missing(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2012", {"a": annotation()}, split="trainval")
    (tmp_path / "VOC2012/ImageSets/Main/cat_trainval.txt").write_text("a 1")
    with pytest.raises(InputError, match=r"available splits: VOC2012/trainval$"):
        load_voc(tmp_path, ["trainval"])


def test_two_annotations_of_one_image_are_an_error(tmp_path: Path) -> None:
    same = annotation(filename="a.jpg")
    with pytest.raises(
        InputError, match=r"b\.xml: its image .* is also that of Annotations/a\.xml"
    ):
        load_voc(write_voc(tmp_path, {"a": same, "b": same}), ["train"])


def test_an_image_of_another_s_name_is_not_taken_from_its_annotation(tmp_path: Path) -> None:
    stale = annotation(filename="b.jpg")
    root = write_voc(tmp_path, {"a": stale, "b": annotation()})
    (root / "JPEGImages/b.jpg").touch()
    with pytest.raises(
        InputError, match=r"b\.xml: its image .* is also that of Annotations/a\.xml"
    ):
        load_voc(root, ["train"])
    (root / "JPEGImages/a.jpg").touch()
    assert load_voc(root, ["train"]).files.tolist() == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]


def test_an_unlisted_class_is_named_with_file_and_object(tmp_path: Path) -> None:
    objects = voc_object(name="cat"), voc_object(name="dog")
    with pytest.raises(
        InputError, match=r"a\.xml: class 'dog' of object 2 is not one of cat, cow;"
    ):
        load_one(tmp_path, *objects, classes=["cat", "cow"])


def mutants(valid: bytes, count: int) -> Iterator[bytes]:
    """Half of them with another value in one element, half with other bytes anywhere."""
    rng = random.Random(0)
    values = [b"0", b"-3", b"7.5", b"1e3", b"99999", b"1e999", b"nan", b"", b"..", b"/a", b"cat"]
    scraps = [bytes([byte]) for byte in b"</&-e07\0\xff"] + [b"9" * 30, b"<![CDATA[", b"&#0;"]
    texts = [match.span(1) for match in re.finditer(rb">([^<]+)<", valid)]
    for number in range(count):
        if number % 2:
            start, stop = rng.choice(texts)
            yield valid[:start] + rng.choice(values) + valid[stop:]
        else:
            start = rng.randrange(len(valid))
            stop = start + rng.choice([0, 1, 8])
            yield valid[:start] + rng.choice(scraps) + valid[stop:]


def test_mutated_annotations_raise_nothing_but_input_errors(tmp_path: Path) -> None:
    objects = voc_object(), voc_object((1, 2.5, 50, 60), "dog", "<difficult>1</difficult>")
    valid = annotation(*objects, filename="a.jpg").encode()
    root, loaded = write_voc(tmp_path, {"a": valid}), 0
    for mutant in mutants(valid, 800):
        (root / "Annotations/a.xml").write_bytes(mutant)
        try:
            annotations = load_voc(root, ["train"])
        except InputError:
            continue
        loaded += 1
        assert np.isfinite(annotations.boxes).all()
        assert (annotations.boxes[:, 2:] > annotations.boxes[:, :2]).all()
    assert loaded > 50


@pytest.mark.skipif(not BCCD.exists(), reason="needs the real data beside the project")
def test_bccd_loads_with_its_two_boxes_without_area_dropped() -> None:
    annotations = load_voc(BCCD, ["train", "val", "test"])
    assert annotations.classes == ("Platelets", "RBC", "WBC")
    assert (len(annotations), len(annotations.boxes), annotations.dropped) == (364, 4886, 2)
    assert np.bincount(annotations.labels).tolist() == [361, 4153, 372]
    lost = load_voc(BCCD, ["trainval"])
    assert (len(lost), lost.dropped) == (292, 2)


@pytest.mark.skipif(not DEVKIT.exists(), reason="needs the fixtures beside the project")
def test_a_devkit_without_pixels_loads_for_scoring() -> None:
    annotations = load_voc(DEVKIT, ["test"])
    assert annotations.classes == VOC_CLASSES
    assert (len(annotations), annotations.split) == (80, "test")
    assert annotations.difficult.sum() == 50
    assert (annotations.boxes >= 0).all()
