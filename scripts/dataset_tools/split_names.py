"""The purpose of a split, by its name."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

_TO_TRAIN_ON = ("train", "trainval", "", "val", "test")  # best first
_TO_VALIDATE_ON = ("val", "test", "", "train")


def role_of(split: str) -> str:
    """Return ``train``, ``trainval``, ``val`` or ``test``; empty if the name contains none of them.

    Case, the rest of the name and the year folder of a VOCdevkit are ignored.

    >>> [role_of(split) for split in ("VOC2007/trainval", "Train", "validation", "fold_0")]
    ['trainval', 'train', 'val', '']
    """
    name = posixpath.basename(split).casefold()
    if "train" in name:
        return "trainval" if "val" in name else "train"
    return next((role for role in ("val", "test") if role in name), "")


def choose_roles(splits: Sequence[str]) -> tuple[str, str]:
    """Choose the splits to train and to validate on by their names, from at least one split.

    A trainval, which may contain the training images, is used for validation only if it is alone.
    """
    train = min(splits, key=lambda split: _TO_TRAIN_ON.index(role_of(split)))
    others = [split for split in splits if split != train and role_of(split) != "trainval"]
    val = min(others, key=lambda split: _TO_VALIDATE_ON.index(role_of(split)), default=train)
    return train, val


def doubts(train: str, val: str) -> Iterator[str]:
    """Yield warnings about the two chosen splits."""
    if "train" not in role_of(train):
        yield f"no split is named train, so {train!r} is used; check that it is the training split"
    if train == val:
        yield (
            f"{val!r} is used for both training and validation, so scores say nothing about other "
            "images; divide it with datasets.py split"
        )
