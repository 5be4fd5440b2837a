"""Segmentations: equal to pycocotools, and checked where pycocotools would not."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data.errors import InputError
from data.formats.run_lengths import described_pixels
from data.formats.segmentations import SegmentationColumns
from data.masks import MaskStore, concatenate_masks, decode_objects, encode_object, object_area

SIZE = np.array([[40, 50]], np.int32)


def store_of(*segmentations: object) -> MaskStore:
    columns = SegmentationColumns()
    for segmentation in segmentations:
        columns.add(segmentation)
    store = columns.finish(SIZE.repeat(len(segmentations), axis=0), "object {}".format)
    assert store is not None
    return store


def decode(store: MaskStore, row: int, box: tuple[float, ...] = (0, 0, 1, 1)) -> np.ndarray:
    return decode_objects(store, [row], np.array([box]), (40, 50))[0]


def trusted_mask(polygons: list[list[float]]) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 50)))


def random_polygon(rng: np.random.Generator, decimals: int) -> list[float]:
    return np.round(rng.uniform(-3, 45, 2 * rng.integers(3, 12)), decimals).tolist()


@pytest.mark.parametrize(("decimals", "dtype"), [(1, np.int32), (2, np.int32), (6, np.float64)])
def test_polygons_decode_to_the_pixels_of_pycocotools(decimals: int, dtype: type) -> None:
    rng = np.random.default_rng(decimals)
    objects = [
        [random_polygon(rng, decimals) for _ in range(rng.integers(1, 4))] for _ in range(50)
    ]
    store = store_of(*objects)
    assert store.coordinates.dtype == dtype
    for row, polygons in enumerate(objects):
        assert [part.tolist() for part in store.polygons_of(row)] == polygons
        assert np.array_equal(decode(store, row), trusted_mask(polygons))


def test_coordinates_are_exact_when_finer_ones_follow_later() -> None:
    coarse, fine = [0.1, 0.2, 9.3, 0.4, 5.5, 7.7], [0.123456789, 1, 2, 3, 4, 5]
    store = store_of(*[[coarse]] * 50_000, [fine])
    assert store.polygons_of(0)[0].tolist() == coarse
    assert store.polygons_of(49_999)[0].tolist() == coarse
    assert store.polygons_of(50_000)[0].tolist() == fine


def test_run_lengths_compressed_or_not_decode_to_the_same_pixels() -> None:
    mask = (np.random.default_rng(0).random((40, 50)) < 0.3).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    columns = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(columns)) + 1
    counts = np.diff([0, *changes, len(columns)]).tolist()
    counts = counts if columns[0] == 0 else [0, *counts]
    store = store_of({"size": [40, 50], "counts": text}, {"size": [40, 50], "counts": counts})
    assert np.array_equal(decode(store, 0), mask)
    assert np.array_equal(decode(store, 1), mask)
    assert object_area(store, 0) == object_area(store, 1) == mask.sum()


def test_decoding_undoes_encoding() -> None:
    store = store_of([[3, 3, 20, 3, 20, 30, 3, 30], [30, 30, 40, 30, 40, 38]])
    encoded = encode_object(store, 0, np.zeros(4), (40, 50))
    again = store_of({"size": encoded["size"], "counts": encoded["counts"].decode()})
    assert np.array_equal(decode(again, 0), decode(store, 0))


def test_an_object_without_segmentation_is_its_box() -> None:
    store = store_of(None, [], [[1, 2]], [[1, 2, 3, 4, 5, 9]])
    assert store.present().tolist() == [False, False, False, True]
    for row in range(3):
        mask = decode(store, row, box=(10, 5, 20, 15))
        assert mask[5:15, 10:20].all()
        assert mask.sum() == 100
        assert object_area(store, row) == 0


def test_no_objects_decode_to_no_masks_of_the_right_size() -> None:
    store = store_of([[1, 2, 3, 4, 5, 9]])
    assert decode_objects(store, [], np.zeros((0, 4)), (40, 50)).shape == (0, 40, 50)


def test_the_area_of_a_polygon_is_what_it_encloses() -> None:
    store = store_of([[0, 0, 4, 0, 4, 3, 0, 3], [10, 10, 14, 10, 14, 13]])
    assert object_area(store, 0) == 12 + 6


def test_chosen_and_joined_stores_keep_each_object() -> None:
    fine = store_of([[0.1234567, 0, 4, 0, 4, 3]], None)
    coarse = store_of(
        [[1.5, 2, 9, 2, 9, 8], [0, 0, 3, 0, 3, 3]], {"size": [40, 50], "counts": [2000]}
    )
    joined = concatenate_masks([fine, coarse, fine]).select(np.array([4, 3, 2, 0]))
    expected = [fine.polygons_of(0), [], coarse.polygons_of(0), fine.polygons_of(0)]
    for row, parts in enumerate(expected):
        assert [p.tolist() for p in joined.polygons_of(row)] == [p.tolist() for p in parts]
    assert [joined.rle_of(row) for row in range(4)] == [b"", coarse.rle_of(1), b"", b""]


def test_described_pixels_are_the_sum_of_the_run_lengths() -> None:
    rng = np.random.default_rng(0)
    strings, sums = [], []
    for _ in range(300):
        counts = rng.integers(0, 10 ** rng.integers(1, 7), rng.integers(1, 40))
        total = int(counts.sum())
        rle = coco_mask.frPyObjects([{"counts": counts.tolist(), "size": [total, 1]}], total, 1)
        strings.append(rle[0]["counts"])
        sums.append(total)
    ends = np.cumsum([len(string) for string in strings])
    spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    characters = np.frombuffer(b"".join(strings), np.uint8)
    assert described_pixels(characters, spans).tolist() == sums
    assert described_pixels(characters, spans[::-1]).tolist() == sums[::-1]


@pytest.mark.parametrize("string", [b"P", b"0P", b"PPPPPPPPPP0", b"\xff0", b"O", b" 5", b"500o"])
def test_malformed_run_lengths_describe_nothing(string: bytes) -> None:
    characters = np.frombuffer(b"52" + string, np.uint8)
    spans = np.array([[0, 2], [2, len(characters)]])
    assert described_pixels(characters, spans).tolist() == [7, -1]


BAD_SEGMENTATIONS = {
    "odd": [[1, 2, 3]],
    "flat list": [1, 2, 3, 4, 5, 6],
    "text": "M3",
    "text in a polygon": [["1", "2", "3", "4", "5", "6"]],
    "null in a polygon": [[1, 2, None, 4, 5, 6]],
    "number": 5,
    "no size": {"counts": [1]},
    "size of text": {"size": ["40", "50"], "counts": [2000]},
    "too few runs": {"size": [40, 50], "counts": [5, 6]},
    "negative run": {"size": [40, 50], "counts": [2005, -5]},
    "no runs": {"size": [40, 50], "counts": []},
    "empty text": {"size": [40, 50], "counts": ""},
    "cut text": {"size": [40, 50], "counts": "P"},
    "foreign text": {"size": [40, 50], "counts": "{}"},
    "huge number": [[1, 2, 3, 4, 5, 10**400]],
}
MISFITS = {
    "short text": {"size": [40, 50], "counts": "52203"},
    "other size": {"size": [50, 40], "counts": [2000]},
    "far away": [[1, 2, 3, 4, 5, 1e6]],
    "far before": [[1, 2, 3, -4e5, 5, 1]],
    "not a number": [[1, 2, 3, float("nan"), 5, 6]],
    "infinite": [[1, 2, 3, float("inf"), 5, 6]],
    "endless": [[0, 0, 1000, 1000] * 2000],
}


@pytest.mark.parametrize("segmentation", BAD_SEGMENTATIONS.values(), ids=BAD_SEGMENTATIONS.keys())
def test_what_is_no_segmentation_is_refused_when_it_comes(segmentation: object) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        SegmentationColumns().add(segmentation)


@pytest.mark.parametrize("segmentation", MISFITS.values(), ids=MISFITS.keys())
def test_what_does_not_fit_its_image_is_refused_in_the_end(segmentation: object) -> None:
    with pytest.raises(InputError, match="object 1: segmentation"):
        store_of([[1, 2, 3, 4, 5, 9]], segmentation)
