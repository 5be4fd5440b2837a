"""The order of an epoch, its batches of images of similar shape, and each process's share of them.

Everything here is a pure function of the seed, the epoch and the sizes of the images. Random bits
come from Philox, addressed by their purpose: no stream is ever shared or advanced, so that a run
can resume anywhere, and any number of worker processes gives the same samples.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
# Purposes of random bits. 0 and 1 order the images of the two aspect groups.
_BATCH_ORDER = 2
_SHOWINGS = 3  # and 4: how often the images of each aspect group are shown


def stream_seed(seed: int, epoch: int, position: int) -> int:
    """Return the seed of one sample's random stream, in 0 .. 2**64 - 1."""
    text = f"{seed} {epoch} {position}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def aspect_groups(sizes_hw: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Group images by shape: ``(I, 2)`` heights and widths -> ``(I,)``, 1 if wider than high.

    Batches of one group need little padding. The paper's toolbox has the same two groups.
    """
    return (sizes_hw[:, 1] > sizes_hw[:, 0]).astype(np.int64)


@dataclass(frozen=True)
class EpochOrder:
    """The batches of each epoch, as positions in its index space.

    Position ``p`` stands for showing ``p // images`` of image ``p % images``. An epoch shows the
    positions ``0 .. repeat * images - 1``; higher ones fill the last batch of each group with
    further, differently augmented showings of images of that group.

    With ``factors``, image ``i`` is shown ``repeat * factors[i]`` times on average: that number
    rounded down, or one more. The total of a group is still the same in every epoch.

    The *global* batches of ``batch_size * world_size`` images depend only on that product: two
    processes with batches of 2 see what one with batches of 4 sees. Rank ``r`` takes the ``r``-th
    slice of each, so that all ranks have equally many batches.

    Attributes:
        groups: ``(images,)`` the aspect group of each image; a batch holds images of one group.
        repeat: showings of each image per epoch.
        batch_size: images per process.
        seed: determines the order, together with the epoch.
        rank: the rank of this process, below ``world_size``.
        world_size: number of processes.
        factors: ``(images,)`` mean showings of each image per repeat; None: each once.
    """

    groups: npt.NDArray[np.int64]
    repeat: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    factors: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return sum(-(-total // self._global_size) for total in self._totals.values())

    @property
    def _global_size(self) -> int:
        return self.batch_size * self.world_size

    def batches(self, epoch: int) -> Positions:
        """``(len(self), batch_size)``: the batches of this process."""
        start = self.rank * self.batch_size
        return self.global_batches(epoch)[:, start : start + self.batch_size]

    def global_batches(self, epoch: int) -> Positions:
        """``(len(self), batch_size * world_size)``: the batches of all processes."""
        batches = []
        for group in self._totals:
            members = self._members(group, epoch)
            members = members[_permutation(len(members), self.seed, epoch, group)]
            batches.append(self._fill(members))
        together = np.concatenate(batches)
        return together[_permutation(len(together), self.seed, epoch, _BATCH_ORDER)]

    @cached_property
    def _means(self) -> npt.NDArray[np.float64]:
        """``(images,)``: mean showings of each image; those of a group add up to a whole number."""
        means = np.full(len(self.groups), float(self.repeat))
        if self.factors is not None:
            means *= self.factors
            for group in np.unique(self.groups):
                members = self.groups == group
                total = means[members].sum()
                # rounded up, so that a mean of at least 1 stays at least 1
                means[members] *= np.ceil(total - 1e-6) / max(total, 1e-6)
        return means

    @cached_property
    def _totals(self) -> dict[int, int]:
        """Number of showings of each group that has any, the same in every epoch."""
        totals = {
            int(group): round(self._means[self.groups == group].sum())
            for group in np.unique(self.groups)
        }
        return {group: total for group, total in totals.items() if total}

    @cached_property
    def _most(self) -> int:
        """Upper bound of the showings of one image in an epoch."""
        return int(np.ceil(self._means.max() - 1e-6))

    def _members(self, group: int, epoch: int) -> Positions:
        """Return the positions of one group that an epoch shows, ascending."""
        images = np.flatnonzero(self.groups == group)
        # Systematic sampling: marks at distance 1, with a random start, on the means laid end to
        # end. Each image gets its mean rounded down or one more, and the total is exact.
        edges = np.cumsum(self._means[images])
        edges[-1] = self._totals[group]
        start = int(random_bits(1, self.seed, epoch, _SHOWINGS + group)[0] >> np.uint64(44)) / 2**20
        showings = np.diff(np.floor(edges + start).astype(np.int64), prepend=0)
        turns = np.arange(showings.max())[:, None]
        return (images + turns * len(self.groups))[turns < showings]

    def _fill(self, members: Positions) -> Positions:
        """``(m,)`` -> ``(ceil(m / size), size)``: the last batch is filled from the beginning."""
        batches = -(-len(members) // self._global_size)
        turn, place = np.divmod(np.arange(batches * self._global_size), len(members))
        showings = members[place] + turn * len(self.groups) * self._most
        return showings.reshape(batches, self._global_size)


def _permutation(length: int, seed: int, epoch: int, purpose: int) -> Positions:
    """Return a random order of ``0 .. length - 1``, by sorting raw bits.

    numpy guarantees the bits of its generators; its ``permutation`` may change with a release.
    """
    return np.argsort(random_bits(length, seed, epoch, purpose), kind="stable")


def random_bits(length: int, seed: int, epoch: int, purpose: int) -> npt.NDArray[np.uint64]:
    """Return ``(length,)`` random 64-bit numbers, addressed by seed, epoch and purpose."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.random.Philox(key=key, counter=[0, purpose, 0, 0]).random_raw(length)


def evaluation_shard(
    sizes_hw: npt.NDArray[np.int32], batch_size: int, rank: int, world_size: int
) -> list[Positions]:
    """Return this rank's batches of images; each image is on exactly one rank, once.

    Images are sorted by aspect ratio and size, and no batch mixes the two aspect groups of
    training: batches then need little padding, as in training, to which a group norm has adapted.
    The numbers of batches of two ranks differ by at most one.
    """
    order = np.lexsort((sizes_hw[:, 0], sizes_hw[:, 1] / sizes_hw[:, 0]))
    wide = aspect_groups(sizes_hw[order]).astype(bool)
    batches = [
        group[start : start + batch_size]
        for group in (order[~wide], order[wide])
        for start in range(0, len(group), batch_size)
    ]
    return batches[rank::world_size]
