"""Multi-scale training: the sizes that the images of each batch are resized to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.sampling import random_bits

_PURPOSE = 6  # of random bits; data.sampling has the others


@dataclass(frozen=True)
class BatchSizes:
    """Draws one size for each global batch.

    Images of a batch then need little padding, and ranks, whose shares have the same size, hardly
    wait for each other.

    Attributes:
        image_size: short side if none is drawn, and maximum long side, in pixels.
        short_sides: the short sides to draw from; empty: always ``image_size``.
        between: draw any integer from the smallest to the largest of them.
        seed: determines the size, together with epoch and batch.
    """

    image_size: tuple[int, int]
    short_sides: Sequence[int] = ()
    between: bool = False
    seed: int = 0

    def sizes(self, epoch: int, batches: int) -> list[tuple[int, int]]:
        """Return (short side, maximum long side) for each batch of an epoch."""
        if not self.short_sides:
            return [self.image_size] * batches
        choices = np.array(self.short_sides)
        if self.between:
            choices = np.arange(choices.min(), choices.max() + 1)
        drawn = random_bits(batches, self.seed, epoch, _PURPOSE) % np.uint64(len(choices))
        return [(side, self.image_size[1]) for side in choices[drawn.astype(np.int64)].tolist()]
