"""How often each image is drawn per epoch, so that rare classes are seen more often."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations, Rows

Factors = npt.NDArray[np.float64]


def showing_factors(
    annotations: Annotations, rows: Rows, kind: str, threshold: float, use_difficult: bool
) -> Factors | None:
    """Return ``(R,)`` mean showings of each image per pass; None shows all once.

    Args:
        annotations: the images and objects.
        rows: ``(R,)`` the images that are trained on.
        kind: ``uniform``, ``repeat_factor`` or ``class_balanced``.
        threshold: the threshold of ``repeat_factor``.
        use_difficult: train on objects marked difficult.
    """
    if kind == "uniform":
        return None
    images, labels = _classes_of_images(annotations, rows, use_difficult)
    if kind == "repeat_factor":
        return repeat_factors(images, labels, len(rows), threshold)
    return class_balanced_factors(images, labels, len(rows))


def repeat_factors(images: Rows, labels: Rows, count: int, threshold: float) -> Factors:
    """Compute the factors of repeat-factor sampling (Gupta et al. 2019, LVIS, section 4).

    A class in the fraction f of the images asks for ``max(1, sqrt(threshold / f))`` showings; an
    image is shown as often as its rarest class asks for.

    Args:
        images, labels: each class of each image once.
        count: the number of images.

    >>> repeat_factors(np.array([0, 1, 2, 3, 3]), np.array([0, 0, 0, 0, 1]), 5, 0.8).tolist()
    [1.0, 1.0, 1.0, 2.0, 1.0]
    """
    fractions = np.bincount(labels) / count
    asked = np.sqrt(threshold / np.maximum(fractions, 1 / count))
    factors = np.ones(count)
    np.maximum.at(factors, images, asked[labels])
    return factors


def class_balanced_factors(images: Rows, labels: Rows, count: int) -> Factors:
    """Show every class equally often: as if first a class were drawn, then one of its images.

    Images without objects are never shown; the factors add up to the number of images.

    >>> class_balanced_factors(np.array([0, 1, 2]), np.array([0, 0, 1]), 4).tolist()
    [1.0, 1.0, 2.0, 0.0]
    """
    members = np.bincount(labels)
    present = max(1, int((members > 0).sum()))
    return np.bincount(images, 1 / members[labels], minlength=count) * count / present


def _classes_of_images(
    annotations: Annotations, rows: Rows, use_difficult: bool
) -> tuple[Rows, Rows]:
    """Return indices into ``rows`` and labels: the classes to train on in each image, once each."""
    some = annotations.select(rows)
    trained = some.trained(use_difficult)
    classes = max(1, len(some.classes))
    keys = some.object_images()[trained] * classes + some.labels[trained]
    images, labels = np.divmod(np.unique(keys), classes)
    return images, labels
