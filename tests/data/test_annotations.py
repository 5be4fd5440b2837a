"""The flat store: choosing, joining and renaming never part an object from its image."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from data.annotations import NO_CATEGORY, Annotations, arrange_objects, concatenate
from data.errors import InputError
from data.masks import MaskStore, empty_masks

COUNTS = (2, 0, 3, 1)


def make_annotations(prefix: str = "a", counts: tuple[int, ...] = COUNTS) -> Annotations:
    """Object ``k`` has the box (k, k, k + 1, k + 2), label k % 2 and a triangle at (k, k)."""
    objects, images = sum(counts), len(counts)
    k = np.arange(objects, dtype=np.float64)
    triangles = np.stack([k, k, k + 1, k, k, k + 2], axis=1) * 100
    return Annotations(
        source=prefix,
        split=prefix,
        classes=("cat", "dog"),
        category_ids=np.array([7, 9]),
        names=np.array([f"{prefix}{i}" for i in range(images)]),
        files=np.array([f"{prefix}/{i}.jpg" for i in range(images)]),
        image_ids=np.arange(10, 10 + images),
        sizes=np.full((images, 2), 32, np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=np.stack([k, k, k + 1, k + 2], axis=1),
        labels=(k % 2).astype(np.int32),
        areas=np.full(objects, 2.0),
        difficult=k == 0,
        crowd=k == 4,
        masks=MaskStore(
            np.stack([np.arange(objects), np.arange(objects) + 1], axis=1),
            np.stack([np.arange(objects) * 6, np.arange(objects) * 6 + 6], axis=1),
            triangles.ravel().astype(np.int32),
            np.zeros((objects, 2), np.int64),
            np.zeros(0, np.uint8),
        ),
        dropped_from=np.array([1]),
    )


def objects_by_file(annotations: Annotations) -> dict[str, list[tuple[object, ...]]]:
    """What each image holds, independent of the order of images."""
    found = {}
    for image, file in enumerate(annotations.files.tolist()):
        rows = range(*annotations.objects_of(image).indices(len(annotations.boxes)))
        found[file] = [
            (
                tuple(annotations.boxes[row]),
                annotations.classes[annotations.labels[row]],
                bool(annotations.difficult[row]),
                bool(annotations.crowd[row]),
                tuple(annotations.masks.polygons_of(row)[0]) if annotations.masks else None,
            )
            for row in rows
        ]
    return found


def test_crowds_are_never_and_difficult_objects_only_on_request_trained_on() -> None:
    annotations = make_annotations()
    assert [annotations.training_objects(i).tolist() for i in range(4)] == [[1], [], [2, 3], [5]]
    assert annotations.training_objects(0, use_difficult=True).tolist() == [0, 1]
    assert annotations.training_objects(2, use_difficult=True).tolist() == [2, 3]


def test_boxes_thinner_than_a_pixel_inside_their_image_are_not_trained_on() -> None:
    whole = make_annotations(counts=(3, 0, 0, 0))
    boxes = np.array([[1, 1, 1.9, 9], [-5, 3, 0.5, 9], [31, 31, 32, 40]])
    annotations = replace(whole, boxes=boxes, difficult=np.zeros(3, bool))
    assert annotations.thin.tolist() == [True, True, False]
    assert annotations.training_objects(0).tolist() == [2]
    assert annotations.training_counts(use_difficult=True).tolist() == [1, 0, 0, 0]
    assert "2 thinner than a pixel" in annotations.summary()


@pytest.mark.parametrize("use_difficult", [False, True])
def test_training_counts_count_the_training_objects(use_difficult: bool) -> None:
    annotations = make_annotations()
    counts = [len(annotations.training_objects(i, use_difficult)) for i in range(len(annotations))]
    assert annotations.training_counts(use_difficult).tolist() == counts


@pytest.mark.parametrize("images", [[0, 1, 2, 3], [3, 1], [2, 0, 2], []])
def test_selected_images_keep_their_objects(images: list[int]) -> None:
    annotations = make_annotations()
    selected = annotations.select(images)
    whole = objects_by_file(annotations)
    assert selected.files.tolist() == [f"a/{i}.jpg" for i in images]
    assert objects_by_file(selected) == {f"a/{i}.jpg": whole[f"a/{i}.jpg"] for i in images}
    assert len(selected.boxes) == selected.offsets[-1] == sum(COUNTS[i] for i in images)
    assert selected.dropped_from.tolist() == [row for row, i in enumerate(images) if i == 1]


def test_selecting_undoes_concatenating() -> None:
    first, second = make_annotations("a"), make_annotations("b", (0, 4))
    both = concatenate([first, second])
    assert objects_by_file(both) == objects_by_file(first) | objects_by_file(second)
    assert objects_by_file(both.select([4, 5])) == objects_by_file(second)
    assert (both.split, both.dropped_from.tolist(), len(both)) == ("a+b", [1, 5], 6)


def test_concatenated_image_ids_are_distinct_and_known_to_be_new() -> None:
    both = concatenate([make_annotations("a"), make_annotations("b")])
    assert both.image_ids.tolist() == list(range(1, 9))
    assert both.ids_contradict
    assert both.select([0]).relabel(["dog", "cat"]).ids_contradict
    other = replace(make_annotations("b"), image_ids=np.arange(20, 24))
    kept = concatenate([make_annotations("a"), other])
    assert kept.image_ids.tolist() == [10, 11, 12, 13, 20, 21, 22, 23]
    assert not kept.ids_contradict


@pytest.mark.parametrize(
    ("first", "second", "both", "contradict"),
    [
        ([7, 9], [7, 9], [7, 9], False),
        ([7, NO_CATEGORY - 1], [7, 9], [7, 9], False),
        ([7, 9], [NO_CATEGORY, 9], [7, 9], False),
        ([7, 9], [9, 7], [7, 9], True),
        ([9, NO_CATEGORY - 1], [NO_CATEGORY, 9], [9, NO_CATEGORY - 1], True),
    ],
)
def test_category_ids_of_concatenated_splits_contradict_each_other_or_complete_each_other(
    first: list[int], second: list[int], both: list[int], contradict: bool
) -> None:
    parts = [
        replace(make_annotations(name), category_ids=np.array(ids), image_ids=start + np.arange(4))
        for name, ids, start in (("a", first, 0), ("b", second, 4))
    ]
    joined = concatenate(parts)
    assert joined.category_ids.tolist() == both
    assert joined.ids_contradict == contradict


def test_an_image_in_two_splits_is_an_error_that_names_it() -> None:
    again = replace(make_annotations("a"), source="c")
    with pytest.raises(InputError, match=r"'a/0\.jpg' is in a and c; keep it once"):
        concatenate([make_annotations("a"), again])


def test_an_image_twice_in_one_split_is_not_said_to_be_in_two() -> None:
    twice = make_annotations("a").select([0, 1, 0])
    with pytest.raises(InputError, match=r"'a/0\.jpg' is twice in a; keep it once"):
        concatenate([make_annotations("b"), twice])


def test_relabeling_keeps_every_class_name_and_category_id() -> None:
    annotations = make_annotations()
    relabeled = annotations.relabel(["dog", "cow", "cat"])
    assert objects_by_file(relabeled) == objects_by_file(annotations)
    assert relabeled.category_ids.tolist() == [9, NO_CATEGORY - 1, 7]
    assert objects_by_file(relabeled.relabel(["cat", "dog"])) == objects_by_file(annotations)
    twice = relabeled.relabel(["cow", "pig", "dog", "cat"])
    assert twice.category_ids.tolist() == [NO_CATEGORY, NO_CATEGORY - 1, 9, 7]
    assert relabeled.with_category_ids({"cow": 8, "cat": 1}).category_ids.tolist() == [9, 8, 7]
    of_dogs = relabeled.with_category_ids({"cow": 9})
    assert of_dogs.category_ids.tolist() == relabeled.category_ids.tolist()


def test_relabeling_names_the_class_that_is_not_listed_and_an_image_of_it() -> None:
    with pytest.raises(InputError, match=r"class 'dog' .objects: 3, the first in image 'a0'"):
        make_annotations().relabel(["cat"])


def test_objects_are_sorted_by_image_and_those_without_area_inside_it_left_out() -> None:
    boxes = np.array([[0, 0, 2, 2], [5, 5, 5, 9], [1, 1, 3, 3], [40, 0, 50, 9], [-5, -5, 1, 1.0]])
    sizes = np.full((3, 2), 32, np.int32)
    rows, offsets, dropped = arrange_objects(np.array([2, 0, 0, 1, 2]), boxes, sizes)
    assert rows.tolist() == [2, 0, 4]
    assert (offsets.tolist(), dropped.tolist()) == ([0, 1, 1, 3], [0, 1])


def test_a_store_pickles_for_workers_that_are_spawned() -> None:
    annotations = make_annotations()
    copy = pickle.loads(pickle.dumps(annotations))
    assert objects_by_file(copy) == objects_by_file(annotations)


def test_a_digest_tells_other_images_and_objects_apart() -> None:
    annotations = make_annotations()
    moved = replace(annotations, source="elsewhere", files=np.char.add("x/", annotations.files))
    assert annotations.digest() == make_annotations().digest() == moved.digest()
    others = [
        make_annotations("b"),
        annotations.select(range(len(annotations) - 1)),
        replace(annotations, boxes=annotations.boxes + 1),
        replace(annotations, sizes=annotations.sizes + 1),
        replace(annotations, labels=1 - annotations.labels),
        replace(annotations, areas=annotations.areas + 1),
        replace(annotations, difficult=~annotations.difficult),
        replace(annotations, crowd=~annotations.crowd),
        replace(annotations, masks=empty_masks(len(annotations.boxes))),
    ]
    digests = {other.digest() for other in [annotations, *others]}
    assert len(digests) == 1 + len(others)


def test_the_summary_counts_what_is_special() -> None:
    annotations = replace(make_annotations(), difficult=np.arange(6) < 3)
    assert annotations.summary() == (
        "a: 4 images, 6 objects of 2 classes, 3 difficult, 1 crowd, 1 box without area dropped"
    )


def test_an_image_that_stands_in_two_parts_is_named_with_both() -> None:
    first, second = make_annotations("a"), make_annotations("b")
    second = replace(second, files=np.array(["b/0.jpg", "a/2.jpg", "b/2.jpg", "b/3.jpg"]))
    with pytest.raises(InputError, match=r"a \+ b: the image 'a/2.jpg' is in a and b"):
        concatenate([first, second])
