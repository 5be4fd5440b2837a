"""The mean of a tensor over all ranks."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean over all processes, bit-equal on each, by one all-reduce.

    It uses the default process group. The sum is computed in float64, where it is exact for float32
    losses of comparable size: it does not depend on the order of the ranks, and the mean of equal
    values is that value.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    total = values.double()
    dist.all_reduce(total)
    return (total / dist.get_world_size()).to(values.dtype)
