"""Counts of what a repair keeps of a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError

Rows = dict[str, set[int]]  # by action, the rows of a file that it applies to


@dataclass
class Kept:
    """Counts of the images and objects in a repaired copy, and in the original."""

    images: int = 0
    of_images: int = 0
    objects: int = 0
    of_objects: int = 0

    def __str__(self) -> str:
        return (
            f"kept {self.images} of {self.of_images} images, "
            f"{self.objects} of {self.of_objects} objects"
        )


def nothing_left(path: Path) -> InputError:
    return InputError(f"{path}: no image could be kept; correct the reported problems by hand")
