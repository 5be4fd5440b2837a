"""Pairs of losses: checks of their names, and their values as ``(pairs, 2)`` tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor


def checked_pairs(pairs: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Check the pairs and return them by name.

    Raises:
        ValueError: there is no pair, a pair does not name two losses, or a loss is in two places.
    """
    if not pairs or not isinstance(pairs, Mapping):
        raise ValueError(
            "pairs must name at least one pair of losses, like {'head': ('a', 'b')}, got "
            f"{pairs!r}"
        )
    seen: set[str] = set()
    for pair, names in pairs.items():
        if isinstance(names, str | Set) or len(names) != 2:
            raise ValueError(f"pair '{pair}' must name two losses, got {names!r}")
        for name in names:
            if name in seen:
                raise ValueError(f"pair '{pair}': loss '{name}' is already in a pair")
            seen.add(name)
    return {pair: (names[0], names[1]) for pair, names in pairs.items()}


def checked_weights(weights: Sequence[float]) -> list[float]:
    """Check the weights of the two losses of a pair and return them as floats.

    Raises:
        ValueError: they are not two numbers that are positive and finite in float32.
    """
    try:
        values = [] if isinstance(weights, str) else [float(weight) for weight in weights]
    except (TypeError, ValueError):  # not a sequence of numbers
        values = []
    held = torch.tensor(values, dtype=torch.float32).tolist()
    if len(values) != 2 or not all(0 < value < math.inf for value in held):
        raise ValueError(
            f"weights must be two positive numbers in the range of float32, got {weights!r}"
        )
    return values


def detached_pairs(losses: Sequence[Tensor]) -> Tensor:
    """Stack losses, in the order of the pairs, to their values, ``(pairs, 2)``, without graphs."""
    return torch.stack([loss.detach().float() for loss in losses]).view(-1, 2)


def usable_or(new: Tensor, old: Tensor) -> Tensor:
    """Return a pair's new weights, or its old ones unless both new ones are positive and finite.

    Losses that are 0 or not finite do not determine a weight, and with methods that divide by the
    weight, a weight of 0 would disable its loss forever. Shapes ``(pairs, 2)``.
    """
    usable = (new.isfinite() & (new > 0)).all(dim=1, keepdim=True)
    return torch.where(usable, new, old)
