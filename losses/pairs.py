"""Pairs of losses: their names checked, their values as ``(pairs, 2)`` tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor


def checked_pairs(pairs: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """The pairs by name, once each loss stands in one place.

    Raises:
        ValueError: for no pair, names that are not two, or a loss that stands in two places.
    """
    if not pairs or not isinstance(pairs, Mapping):
        raise ValueError(
            "pairs must name at least one pair of losses, like {'head': ('a', 'b')}, got "
            f"{pairs!r}"
        )
    seen: set[str] = set()
    for pair, names in pairs.items():
        if isinstance(names, str | Set) or len(names) != 2:
            raise ValueError(f"pair '{pair}' must be the names of two losses, got {names!r}")
        for name in names:
            if name in seen:
                raise ValueError(f"pair '{pair}': loss '{name}' already stands in a pair")
            seen.add(name)
    return {pair: (names[0], names[1]) for pair, names in pairs.items()}


def checked_weights(weights: Sequence[float]) -> list[float]:
    """The weights of the two losses of a pair as floats.

    Raises:
        ValueError: unless they are two numbers that float32, which holds them, has as positive
            and finite.
    """
    try:
        values = [] if isinstance(weights, str) else [float(weight) for weight in weights]
    except (TypeError, ValueError):  # no sequence, or not of numbers
        values = []
    held = torch.tensor(values, dtype=torch.float32).tolist()
    if len(values) != 2 or not all(0 < value < math.inf for value in held):
        raise ValueError(
            f"weights must be two positive numbers that float32 can hold, got {weights!r}"
        )
    return values


def detached_pairs(losses: Sequence[Tensor]) -> Tensor:
    """Losses in the order of the pairs -> their values, ``(pairs, 2)``, without their graphs."""
    return torch.stack([loss.detach().float() for loss in losses]).view(-1, 2)


def usable_or(new: Tensor, old: Tensor) -> Tensor:
    """The new weights of each pair, or its old ones where a new one is not positive and finite.

    Losses that are 0 or not finite say nothing about a weight, and a weight of 0 would silence its
    loss for ever under the rules that divide by it. Shapes ``(pairs, 2)``.
    """
    usable = (new.isfinite() & (new > 0)).all(dim=1, keepdim=True)
    return torch.where(usable, new, old)
