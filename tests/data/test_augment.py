from __future__ import annotations

import pickle
import random as python_random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from data.augment import (
    AlbumentationsPipeline,
    Chain,
    HorizontalFlip,
    Picture,
    build_augmentation,
)
from data.errors import InputError
from data.sampling import stream_seed

Transform = Mapping[str, Mapping[str, Any]]


def picture_of_rectangles(height: int = 64, width: int = 80) -> Picture:
    """Four rectangles with tight boxes, each of its own label."""
    random = np.random.default_rng(3)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes = np.array([[4, 6, 30, 20], [40, 30, 70, 60], [10, 40, 18, 62], [50, 2, 79, 9]])
    masks = np.zeros((4, height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    return Picture(image, boxes.astype(np.float32), np.array([7, 3, 5, 1]), masks)


def without_objects(masks: bool) -> Picture:
    image = picture_of_rectangles().image
    no_masks = np.zeros((0, *image.shape[:2]), np.uint8) if masks else None
    return Picture(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), no_masks)


def tight_boxes(masks: np.ndarray) -> np.ndarray:
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return np.array(boxes, np.float32).reshape(-1, 4)


def assert_consistent(picture: Picture) -> None:
    """Types, shapes, and boxes that lie in the picture."""
    height, width, channels = picture.image.shape
    count = len(picture.boxes)
    assert channels == 3
    assert (picture.image.dtype, picture.boxes.dtype) == (np.uint8, np.float32)
    assert picture.boxes.shape == (count, 4)
    assert picture.labels.shape == (count,)
    assert picture.labels.dtype == np.int64
    assert (picture.boxes >= 0).all()
    assert (picture.boxes[:, 2:] - picture.boxes[:, :2] >= 1 - 1e-4).all()
    assert (picture.boxes[:, 2:] <= (width + 1e-3, height + 1e-3)).all()
    if picture.masks is not None:
        assert picture.masks.shape == (count, height, width)
        assert picture.masks.dtype == np.uint8
        assert picture.masks.max(initial=0) <= 1


GEOMETRY: list[tuple[list[Transform], float]] = [
    ([{"HorizontalFlip": {"p": 1}}, {"VerticalFlip": {"p": 1}}], 1e-3),
    ([{"HorizontalFlip": {"p": 1.0}}], 1e-3),
    ([{"RandomRotate90": {"p": 1}}, {"Transpose": {}}], 1e-3),
    ([{"D4": {"p": 1}}], 1e-3),
    ([{"RandomCrop": {"height": 40, "width": 50}}, {"HorizontalFlip": {}}], 1e-3),
    ([{"PadIfNeeded": {"min_height": 100, "min_width": 100}}], 1e-3),
    ([{"RandomScale": {"scale_limit": 0.5, "p": 1}}], 1.5),
    ([{"Affine": {"scale": [0.6, 1.4], "translate_percent": [-0.3, 0.3], "p": 1}}], 2.0),
    ([{"RandomSizedBBoxSafeCrop": {"height": 50, "width": 60, "p": 1}}], 2.0),
]


@pytest.mark.parametrize(("transforms", "tolerance"), GEOMETRY)
def test_the_tight_box_of_a_transformed_mask_is_the_transformed_box(
    transforms: list[Transform], tolerance: float
) -> None:
    augmentation = build_augmentation(transforms)
    before = picture_of_rectangles()
    shown = 0
    for seed in range(25):
        after = augmentation(before, seed)
        assert_consistent(after)
        assert after.masks is not None
        assert np.abs(tight_boxes(after.masks) - after.boxes).max(initial=0) <= tolerance
        assert set(after.labels.tolist()) <= {7, 3, 5, 1}
        shown += len(after.boxes)
    assert shown > 25


def test_a_turned_box_encloses_its_turned_mask() -> None:
    augmentation = build_augmentation([{"Rotate": {"limit": 45, "p": 1}}])
    for seed in range(25):
        after = augmentation(picture_of_rectangles(), seed)
        assert_consistent(after)
        assert after.masks is not None
        tight = tight_boxes(after.masks)
        assert (after.boxes[:, :2] <= tight[:, :2] + 1.5).all()
        assert (after.boxes[:, 2:] >= tight[:, 2:] - 1.5).all()


def test_labels_stay_with_their_boxes_and_masks_when_others_leave() -> None:
    augmentation = build_augmentation(
        [{"Crop": {"x_min": 38, "y_min": 28, "x_max": 72, "y_max": 62, "p": 1}}]
    )
    after = augmentation(picture_of_rectangles(), 0)
    assert after.labels.tolist() == [3]
    np.testing.assert_allclose(after.boxes, [[2, 2, 32, 32]], atol=1e-3)
    assert after.masks is not None
    np.testing.assert_array_equal(tight_boxes(after.masks), [[2, 2, 32, 32]])


def test_an_object_whose_pixels_a_crop_cut_away_is_dropped_with_its_box() -> None:
    before = picture_of_rectangles()
    assert before.masks is not None
    before.masks[1, :, :60] = 0  # what is left of it lies in the right third of its box
    crop = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 55, "y_max": 64, "p": 1}}
    after = build_augmentation([crop])(before, 0)
    assert after.labels.tolist() == [7, 5, 1]
    boxes_only = Picture(before.image, before.boxes, before.labels, None)
    assert build_augmentation([crop])(boxes_only, 0).labels.tolist() == [7, 3, 5, 1]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(("transforms", "tolerance"), GEOMETRY)
def test_a_picture_without_objects_keeps_the_shapes(
    transforms: list[Transform],
    tolerance: float,  # noqa: ARG001
    masks: bool,
) -> None:
    after = build_augmentation(transforms)(without_objects(masks), 1)
    assert_consistent(after)
    assert (after.masks is not None) == masks


def test_all_objects_leaving_at_once_leaves_empty_arrays() -> None:
    crop = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 3, "y_max": 3, "p": 1}}
    after = build_augmentation([crop])(picture_of_rectangles(), 0)
    assert_consistent(after)
    assert after.boxes.shape == (0, 4)


def test_what_a_crop_leaves_of_a_box_is_dropped_below_a_pixel() -> None:
    crop = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 5, "y_max": 64, "p": 1}}
    before = picture_of_rectangles()
    before.boxes[0, 0] = 4.5
    after = build_augmentation([crop])(Picture(before.image, before.boxes, before.labels, None), 0)
    assert after.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "transforms",
    [
        [{"ColorJitter": {"p": 1}}],
        [{"OneOf": {"transforms": [{"GaussianBlur": {}}, {"ToGray": {}}], "p": 1}}],
    ],
)
def test_colors_change_and_boxes_do_not_by_a_bit(transforms: list[Transform]) -> None:
    before = picture_of_rectangles()
    before.boxes[0] = [-3.7, 1.1, 200, 20.3]  # not even clipped
    after = build_augmentation(transforms)(before, 5)
    assert (after.image != before.image).any()
    assert after.boxes is before.boxes
    assert after.masks is before.masks


def test_the_short_way_to_flip_equals_albumentations() -> None:
    before = picture_of_rectangles()
    ours = HorizontalFlip(1.0)(before, 0)
    library = pytest.importorskip("albumentations")
    theirs = AlbumentationsPipeline(library, [library.HorizontalFlip(p=1)], True)(before, 0)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-5)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(ours.masks, theirs.masks)


def test_colors_beside_flips_are_the_same_by_either_way() -> None:
    before = picture_of_rectangles()
    transforms = [{"HorizontalFlip": {"p": 1}}, {"InvertImg": {"p": 1}}, {"ToGray": {"p": 1}}]
    shortly = build_augmentation(transforms)
    fully = build_augmentation([*transforms, {"VerticalFlip": {"p": 0}}])
    assert isinstance(shortly, Chain)
    assert isinstance(fully, AlbumentationsPipeline)
    ours, theirs = shortly(before, 1), fully(before, 1)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-5)
    np.testing.assert_array_equal(ours.masks, theirs.masks)


def test_flipping_twice_gives_the_picture_back() -> None:
    before = picture_of_rectangles()
    flip = HorizontalFlip(1.0)
    after = flip(flip(before, 0), 0)
    np.testing.assert_array_equal(after.image, before.image)
    np.testing.assert_array_equal(after.boxes, before.boxes)
    np.testing.assert_array_equal(after.masks, before.masks)


def test_a_flip_is_as_frequent_as_its_p() -> None:
    before = picture_of_rectangles()
    seeds = np.random.default_rng(0).integers(0, 2**64, 2000, dtype=np.uint64).tolist()
    for p in (0.0, 0.3, 1.0):
        flip = build_augmentation([{"HorizontalFlip": {"p": p}}])
        assert isinstance(flip, Chain)
        flipped = sum(flip(before, seed) is not before for seed in seeds)
        assert abs(flipped / 2000 - p) <= 0.04 * (0 < p < 1)


RANDOM: list[Transform] = [
    {"HorizontalFlip": {"p": 0.5}},
    {"SomeOf": {"transforms": [{"GaussNoise": {}}, {"RandomGamma": {}}], "n": 1, "p": 1}},
    {"RandomResizedCrop": {"size": [48, 48], "p": 0.7}},
]


def test_the_seed_decides_everything_whatever_came_before() -> None:
    one, other = build_augmentation(RANDOM), build_augmentation(RANDOM)
    before = picture_of_rectangles()
    for seed in range(5):
        other(before, seed + 1000)
    distinct = set()
    for seed in (2**64 - 1, 5, 77, 12345678901234567, 0):
        first, second = one(before, seed), other(before, seed)
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.boxes, second.boxes)
        distinct.add(first.image.tobytes())
    assert len(distinct) == 5


def test_transforms_decide_independently_of_each_other() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[0, 0] = 255
    before = Picture(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None)
    seeds = [stream_seed(0, 0, position) for position in range(400)]
    flips = build_augmentation([{"HorizontalFlip": {}}, {"VerticalFlip": {}}])
    corners = [tuple(np.argwhere(flips(before, seed).image)[0, :2]) for seed in seeds]
    twice = build_augmentation([{"HorizontalFlip": {}}, {"HorizontalFlip": {}}])
    flipped = [int(twice(before, seed).image[0, 7, 0] > 0) for seed in seeds]
    assert 160 <= sum(flipped) <= 240
    for corner in ((0, 0), (0, 7), (7, 0), (7, 7)):
        assert 70 <= corners.count(corner) <= 130


def test_the_global_random_streams_are_not_touched() -> None:
    numpy_before, python_before = np.random.get_state()[1], python_random.getstate()  # noqa: NPY002
    augmentation = build_augmentation(RANDOM)
    augmentation(picture_of_rectangles(), 3)
    np.testing.assert_array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002
    assert python_before == python_random.getstate()


def test_an_augmentation_can_be_sent_to_another_process() -> None:
    augmentation = build_augmentation(RANDOM)
    copy = pickle.loads(pickle.dumps(augmentation))
    before = picture_of_rectangles()
    np.testing.assert_array_equal(augmentation(before, 4).image, copy(before, 4).image)


def test_no_transforms_change_nothing() -> None:
    before = picture_of_rectangles()
    assert build_augmentation([])(before, 0) is before


@pytest.mark.parametrize(
    ("transforms", "complaint"),
    [
        ([{"HorizontalFlop": {}}], "'HorizontalFlop' is not .* similar: HorizontalFlip"),
        ([{"os.system": {}}], "'os.system' is not an Albumentations transform"),
        ([{"Lambda": {}}], "'Lambda' is not an Albumentations transform"),
        ([{"BasicTransform": {}}], "is not an Albumentations transform"),
        ([{"HorizontalFlip": {"prob": 0.5}}], "HorizontalFlip: no parameter prob; it has p"),
        ([{"HorizontalFlip": {"p": 2}}], r"HorizontalFlip: p: Input should be less than"),
        ([{"RandomCrop": {}}], "RandomCrop: height: Field required; width: Field required"),
        ([{"OneOf": {"transforms": [{"Blurr": {}}]}}], "'Blurr' .*similar: .*Blur"),
        ([{"OneOf": {"transforms": [17]}}], "17 is not a transform; write"),
        ([{"OneOf": {"transforms": [{"Blur": 3}]}}], "Blur: 3 must be"),
        ([{"OneOf": {"transform": []}}], "OneOf: no parameter transform; it has transforms"),
        ([{"Normalize": {}}], "Normalize: pixels must stay uint8; they are normalized"),
        ([{"ToFloat": {"p": 0.1}}], "ToFloat: pixels must stay uint8"),
        ([{"OneOf": {"transforms": [{"Morphological": {}}]}}], "Morphological: .* wrong boxes"),
        ([{"Sequential": {"transforms": "Blur"}}], "Sequential: transforms: 'Blur' is not a list"),
        ([{"SomeOf": {"n": [1, 2], "transforms": ["Blur"]}}], "SomeOf: .*; it has transforms, n"),
        ([{"OneOrOther": {"first": "Blurr", "second": "Blur"}}], "'Blurr' is not"),
        ([{"CenterCrop3D": {"size": [1, 1, 1]}}], "'CenterCrop3D' is not"),
        ([{"Mosaic": {}}], "Mosaic: it needs mosaic_metadata with each image"),
        ([{"MaskDropout": {}}], "MaskDropout: it needs mask with each image"),
        (
            [{"ConstrainedCoarseDropout": {"bbox_labels": [1]}}],
            "it has no access to the classes here",
        ),
    ],
)
def test_what_cannot_be_built_is_named_with_the_choices(
    transforms: list[Transform], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as raised:
        build_augmentation(transforms)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("data.augment: ")


HOLES: list[tuple[str, Mapping[str, Any]]] = [
    ("GridDropout", {}),
    ("Erasing", {}),
    ("CoarseDropout", {"num_holes_range": [8, 12], "hole_height_range": [0.2, 0.4]}),
    ("XYMasking", {"num_masks_x": 3, "mask_x_length": 15}),
    ("TimeMasking", {}),
]


@pytest.mark.parametrize(("name", "parameters"), HOLES)
def test_holes_are_cut_out_of_masks_too_or_refused_where_masks_are_trained(
    name: str, parameters: Mapping[str, Any]
) -> None:
    if name != "TimeMasking":  # it fills masks by itself
        left = {"OneOf": {"transforms": [{name: parameters}], "p": 1}}
        with pytest.raises(InputError, match=f"{name}: it cuts boxes but not .* fill_mask: 0"):
            build_augmentation([left], with_masks=True)
        build_augmentation([left])
        parameters = {**parameters, "fill_mask": 0}
    augmentation = build_augmentation([{name: {**parameters, "p": 1}}], with_masks=True)
    differences: list[float] = []
    for seed in range(60):
        after = augmentation(picture_of_rectangles(), seed)
        assert after.masks is not None
        differences += np.abs(tight_boxes(after.masks) - after.boxes).max(axis=1).tolist()
    # Its boxes are rounded down: what a hole leaves of the last column counts only in the mask.
    assert sum(difference > 1.5 for difference in differences) <= 0.03 * len(differences)


def test_pieces_of_a_picture_are_not_shuffled_where_masks_are_trained() -> None:
    shuffle: list[Transform] = [{"RandomGridShuffle": {}}]
    with pytest.raises(InputError, match="RandomGridShuffle: masks do not fit"):
        build_augmentation(shuffle, with_masks=True)
    build_augmentation(shuffle)


BORDERS: list[Transform] = [
    {"Pad": {"padding": 30}},
    {"Rotate": {"limit": [20, 20], "p": 1}},
    {"Affine": {"scale": [0.5, 0.5], "p": 1}},
    {"RandomCrop": {"height": 90, "width": 110, "pad_if_needed": True}},
]


@pytest.mark.parametrize("transform", BORDERS)
def test_only_a_constant_border_is_taken_where_masks_are_trained(transform: Transform) -> None:
    ((name, parameters),) = transform.items()
    for border in (1, 2, 3, 4):
        bordered: list[Transform] = [{name: {**parameters, "border_mode": border}}]
        with pytest.raises(InputError, match=f"{name}: masks do not fit .* border_mode {border}"):
            build_augmentation([{"OneOf": {"transforms": bordered}}], with_masks=True)
    constant: list[Transform] = [{name: {**parameters, "border_mode": 0}}]
    before = picture_of_rectangles()
    before.boxes[0], before.masks[0, 6:20, :4] = [0, 6, 30, 20], 1  # type: ignore[index]
    after = build_augmentation(constant, with_masks=True)(before, 0)
    assert after.masks is not None
    assert len(set(after.labels.tolist())) == len(after.labels)
    assert (after.boxes[:, :2] <= tight_boxes(after.masks)[:, :2] + 1.5).all()
    assert (after.boxes[:, 2:] >= tight_boxes(after.masks)[:, 2:] - 1.5).all()


@pytest.mark.parametrize("transform", BORDERS)
def test_a_wrapped_border_which_copies_objects_without_boxes_is_refused(
    transform: Transform,
) -> None:
    ((name, parameters),) = transform.items()
    with pytest.raises(InputError, match=f"{name}: border_mode 3 .wrap. copies .* set border"):
        build_augmentation([{name: {**parameters, "border_mode": 3}}])
    for border in (0, 1, 2, 4):
        build_augmentation([{name: {**parameters, "border_mode": border}}])


def test_what_a_transform_fills_belongs_to_no_mask() -> None:
    pad: list[Transform] = [{"Pad": {"padding": 5, "fill_mask": 1}}]
    with pytest.raises(InputError, match=r"PixelDropout: .* set mask_drop_value: 0"):
        build_augmentation([{"PixelDropout": {"mask_drop_value": 1}}], with_masks=True)
    with pytest.raises(InputError, match=r"Pad: filled pixels .* set fill_mask: 0"):
        build_augmentation(pad, with_masks=True)
    build_augmentation(pad)


def test_a_crop_around_masks_takes_a_picture_without_objects() -> None:
    crop: list[Transform] = [{"CropNonEmptyMaskIfExists": {"height": 30, "width": 40, "p": 1}}]
    augmentation = build_augmentation(crop, with_masks=True)
    after = augmentation(without_objects(masks=True), 0)
    assert_consistent(after)
    assert after.masks is not None
    assert after.masks.shape == (0, 30, 40)
    assert len(augmentation(picture_of_rectangles(), 0).boxes)


def test_a_transform_that_cannot_take_a_picture_says_which() -> None:
    augmentation = build_augmentation([{"RandomCrop": {"height": 999, "width": 999}}])
    with pytest.raises(InputError, match=r"data\.augment: CropSizeError: .*999.* remove it"):
        augmentation(picture_of_rectangles(), 0)


def test_a_transform_that_loses_a_color_is_refused() -> None:
    augmentation = build_augmentation([{"ToGray": {"num_output_channels": 1, "p": 1}}])
    with pytest.raises(InputError, match="must return RGB uint8 pixels"):
        augmentation(picture_of_rectangles(), 0)
