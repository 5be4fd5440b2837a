"""Mean, deviation and paired tests over a handful of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Scores of some seeds: their number, mean and sample standard deviation (None for one)."""

    count: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Paired:
    """Differences between two cells, seed by seed.

    Attributes:
        difference: summary of the differences over the seeds that both have.
        t_test: two-sided p of Student's paired t-test, which assumes normal differences.
        sign_flip: two-sided p of the exact sign-flip permutation test, which only assumes
            differences symmetric about 0; with n seeds it cannot be below 2 / 2^n.
    """

    difference: Summary
    t_test: float | None
    sign_flip: float | None


def summarize(values: Sequence[float]) -> Summary | None:
    """Compute mean and sample standard deviation; None without values."""
    if not values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(len(values), float(np.mean(values)), deviation)


def compare(values: dict[int, float], baseline: dict[int, float]) -> Paired | None:
    """Compare two cells over the seeds that both have; None if there are none."""
    differences = [values[seed] - baseline[seed] for seed in sorted(values) if seed in baseline]
    difference = summarize(differences)
    if difference is None:
        return None
    if difference.count < 2:
        return Paired(difference, None, None)
    return Paired(difference, paired_t_test(differences), sign_flip_test(differences))


def paired_t_test(differences: Sequence[float]) -> float:
    """Compute the two-sided p of a mean of 0, for at least two differences.

    Differences that are all the same and not 0 give p = 0, all 0 gives 1.
    """
    if np.std(differences) == 0:
        return 0.0 if np.mean(differences) else 1.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def sign_flip_test(differences: Sequence[float]) -> float:
    """Compute the two-sided p: the share of all 2^n sign choices whose sum is as far from 0."""
    magnitudes = np.abs(differences)
    observed = abs(float(np.sum(differences)))
    sums = np.zeros(1)
    for magnitude in magnitudes:  # only the 2^n sums: their signs would take n times the memory
        sums = np.concatenate([sums - magnitude, sums + magnitude])
    return float(np.mean(np.abs(sums) >= observed - 1e-9 * max(1e-12, magnitudes.sum())))


def rank_correlation(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Compute Spearman's rank correlation; equal values share their mean rank.

    It is None if all values of either sequence are equal.
    """
    if min(len(set(values)), len(set(others))) < 2:
        return None
    return float(stats.spearmanr(values, others).statistic)
