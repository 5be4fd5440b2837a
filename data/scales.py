"""Multi-scale training: the size that the images of a batch are resized to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.sampling import random_bits

_PURPOSE = 6  # of random bits; data.sampling has the others


@dataclass(frozen=True)
class BatchSizes:
    """One size for each global batch: within a batch images need little padding, and ranks, whose
    shares are of the same size, little waiting.

    Attributes:
        image_size: short side where nothing is drawn, and the longest long side, pixels.
        short_sides: the short sides to draw from; none: always ``image_size``.
        between: draw any whole number from the smallest to the largest of them.
        seed: together with epoch and batch it decides the size.
    """

    image_size: tuple[int, int]
    short_sides: Sequence[int] = ()
    between: bool = False
    seed: int = 0

    def sizes(self, epoch: int, batches: int) -> list[tuple[int, int]]:
        """(short side, longest long side) of each batch of an epoch."""
        if not self.short_sides:
            return [self.image_size] * batches
        choices = np.array(self.short_sides)
        if self.between:
            choices = np.arange(choices.min(), choices.max() + 1)
        drawn = random_bits(batches, self.seed, epoch, _PURPOSE) % np.uint64(len(choices))
        return [(side, self.image_size[1]) for side in choices[drawn.astype(np.int64)].tolist()]
