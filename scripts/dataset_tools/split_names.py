"""What the name of a split says that it is for."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

_TO_TRAIN_ON = ("train", "trainval", "", "val", "test")  # the best first
_TO_VALIDATE_ON = ("val", "test", "", "train")


def role_of(split: str) -> str:
    """``train``, ``trainval``, ``val`` or ``test``; empty where the name says none of them.

    In any case, as a part of the name, and without the folder of a VOCdevkit's year before it.

    >>> [role_of(split) for split in ("VOC2007/trainval", "Train", "validation", "fold_0")]
    ['trainval', 'train', 'val', '']
    """
    name = posixpath.basename(split).casefold()
    if "train" in name:
        return "trainval" if "val" in name else "train"
    return next((role for role in ("val", "test") if role in name), "")


def choose_roles(splits: Sequence[str]) -> tuple[str, str]:
    """The splits to train and to validate on, by their names; there is at least one split.

    A trainval, which may hold what is trained on, is never validated on beside another split.
    """
    train = min(splits, key=lambda split: _TO_TRAIN_ON.index(role_of(split)))
    others = [split for split in splits if split != train and role_of(split) != "trainval"]
    val = min(others, key=lambda split: _TO_VALIDATE_ON.index(role_of(split)), default=train)
    return train, val


def doubts(train: str, val: str) -> Iterator[str]:
    """What speaks against two chosen splits, and the cure."""
    if "train" not in role_of(train):
        yield f"no split is named train, so {train!r} is taken; is it the one to train on?"
    if train == val:
        yield (
            f"{val!r} is trained and validated on, so that its scores say nothing about other "
            "images; divide it with datasets.py split"
        )
