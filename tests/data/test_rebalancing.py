"""How often images are shown under the two samplings, in closed form and on real annotations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.formats.in_memory import annotations_of
from data.formats.voc import load_voc
from data.rebalancing import class_balanced_factors, repeat_factors, showing_factors

BCCD = Path(__file__).parents[2] / "../shared/data/bccd"


def test_an_image_repeats_as_its_rarest_class_asks() -> None:
    # class 0 in 100 of 100 images, class 1 in none, class 2 in 4, class 3 in 1
    images = np.concatenate([np.arange(100), np.arange(4), [3]])
    labels = np.repeat([0, 2, 3], [100, 4, 1])
    factors = repeat_factors(images, labels, 100, threshold=0.16)
    assert factors[:3].tolist() == [2.0, 2.0, 2.0]  # sqrt(0.16 / 0.04)
    assert factors[3] == pytest.approx(4.0)  # sqrt(0.16 / 0.01)
    assert (factors[4:] == 1.0).all()


def test_images_without_objects_are_shown_once_by_repeat_factors_and_never_in_balance() -> None:
    images, labels = np.array([0, 1]), np.array([0, 1])
    assert repeat_factors(images, labels, 3, 0.5)[2] == 1.0
    assert class_balanced_factors(images, labels, 3)[2] == 0.0


def test_balanced_classes_are_drawn_equally_often() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), [50, 20, 5, 1])
    images = np.concatenate([random.choice(60, n, replace=False) for n in (50, 20, 5, 1)])
    factors = class_balanced_factors(images, labels, 60)
    assert factors.sum() == pytest.approx(60)
    # Draw a class, then one of its images: image i comes up with sum over its classes 1 / (K n_c).
    expected = np.zeros(60)
    for image, label in zip(images, labels, strict=True):
        expected[image] += 60 / 4 / np.sum(labels == label)
    np.testing.assert_allclose(factors, expected)


def test_factors_are_of_the_classes_that_the_chosen_images_have() -> None:
    box = [1, 1, 5, 5]
    # each image has its classes several times, and a class of its own number besides 0
    labels = [[0, 0, 1], [0, 2], [], [2, 2, 2], [0]]
    annotations = annotations_of(
        ("a", "b", "c"),
        [f"{number}.png" for number in range(5)],
        [(9, 9)] * 5,
        [[box] * len(each) for each in labels],
        labels,
    )
    rows = np.array([0, 1, 3, 4])  # without the empty image; class 0 in 3 of 4, 1 in 1, 2 in 2
    repeated = showing_factors(annotations, rows, "repeat_factor", 1.0, False)
    assert repeated is not None
    np.testing.assert_allclose(repeated, np.sqrt([4, 2, 2, 4 / 3]))
    balanced = showing_factors(annotations, rows, "class_balanced", 1.0, False)
    assert balanced is not None
    thirds = np.array([1 / 3 + 1, 1 / 3 + 1 / 2, 1 / 2, 1 / 3])
    np.testing.assert_allclose(balanced, thirds * 4 / 3)


def test_difficult_objects_count_where_they_are_trained_on() -> None:
    box, labels = [1, 1, 5, 5], [[0], [0, 1]]
    boxes = [[box] * len(each) for each in labels]
    annotations = annotations_of(("a", "b"), ["0.png", "1.png"], [(9, 9)] * 2, boxes, labels)
    annotations = replace(annotations, difficult=annotations.labels == 1)
    for use_difficult, second in ((False, 1), (True, 2**0.5)):
        factors = showing_factors(annotations, np.arange(2), "repeat_factor", 1.0, use_difficult)
        assert factors is not None
        assert factors.tolist() == pytest.approx([1, second])


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs the real blood cells")
def test_blood_cells_without_red_ones_only_are_repeated() -> None:
    annotations = load_voc(BCCD, ["train"])
    rows = np.arange(len(annotations))
    assert showing_factors(annotations, rows, "uniform", 0.5, False) is None
    factors = showing_factors(annotations, rows, "repeat_factor", 0.9, False)
    assert factors is not None
    platelets = annotations.classes.index("Platelets")
    has = [platelets in annotations.labels[annotations.objects_of(row)] for row in rows.tolist()]
    share = np.mean(has)
    np.testing.assert_allclose(factors[has], max(1.0, np.sqrt(0.9 / share)))
