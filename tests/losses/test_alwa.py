"""Laws of ALWA: the authors' traces, the three updates, degenerate windows."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from losses import ALWA

TRACES = Path(__file__).parent / "fixtures" / "alwa_traces.json"
PAIR = {"head": ("cls", "reg")}


def one_process_cases() -> list[dict[str, Any]]:
    return [case for case in json.loads(TRACES.read_text())["cases"] if "ranks" not in case]


def weight(alwa: ALWA, name: str = "cls") -> float:
    return alwa.weights()[name].item()


def run_window(alwa: ALWA, cls: tuple[float, float], reg: tuple[float, float]) -> float:
    """Two iterations of raw losses (the interval is 2); returns the weight after them."""
    for cls_loss, reg_loss in zip(cls, reg, strict=True):
        alwa({"cls": torch.tensor(cls_loss), "reg": torch.tensor(reg_loss)})
    return weight(alwa)


def with_ratio(ratio: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """A window's raw losses whose deviations have the ratio reg / cls."""
    return (2.0, 3.0), (2.0, 2.0 + ratio)


def test_every_trace_of_the_authors_rule_is_reproduced() -> None:
    cases = one_process_cases()
    assert {(case["variant"], case["interval"], case["initial"][0]) for case in cases} == {
        (variant, interval, initial)
        for variant in (1, 2)
        for interval in (5, 20, 100)
        for initial in (0.75, 1.0, 1.5)
    }
    for case in cases:
        alwa = ALWA(PAIR, case["variant"], case["interval"], case["initial"])
        weights = [weight(alwa)]
        for cls, reg in zip(case["cls"], case["reg"], strict=True):
            alwa({"cls": torch.tensor(cls), "reg": torch.tensor(reg)})
            weights.append(weight(alwa))
            assert weight(alwa, "reg") == case["initial"][1]
        assert weights == pytest.approx(case["cls_weight"], rel=1e-6, abs=0)


def test_variant_1_compares_mean_and_deviation_variant_2_the_deviation() -> None:
    cls, reg = (3.0, 5.0), (1.0, 2.0)  # means 4 and 1.5, deviations √2 and √½
    std_cls, std_reg = math.sqrt(2), math.sqrt(0.5)
    by_both = (1.5 + std_reg) / (4 + std_cls)
    assert run_window(ALWA(PAIR, 1, 2), cls, reg) == pytest.approx(by_both, rel=1e-6)
    assert run_window(ALWA(PAIR, 2, 2), cls, reg) == pytest.approx(std_reg / std_cls, rel=1e-6)


def test_a_large_mean_does_not_spoil_the_deviation() -> None:
    alwa = ALWA(PAIR, 2, 2)
    lifted = run_window(alwa, (1000.0, 1001.0), (1000.0, 1000.5))
    assert lifted == 0.5


@pytest.mark.parametrize("update", ["replace", "multiplicative", "unweighted"])
def test_a_steady_ratio_brings_the_weight_there_and_keeps_it(update: str) -> None:
    alwa = ALWA(PAIR, interval=2, update=update)
    weights = [run_window(alwa, *with_ratio(0.25)) for _ in range(6)]
    assert weights == [0.25] * 6


def test_replace_flips_between_the_ratio_and_one_under_noise() -> None:
    alwa = ALWA(PAIR, interval=2)
    ratios = [0.5, 0.5 * 0.99, 0.5, 0.5 * 0.99, 0.5]
    weights = [run_window(alwa, *with_ratio(ratio)) for ratio in ratios]
    # 0.495 is below the weight of 0.5: it becomes 0.495 / 0.5, and the next window takes it back.
    assert weights == pytest.approx(
        [0.5, 0.99, 0.5 / 0.99, 0.495 / (0.5 / 0.99), 0.5 / 0.9801], rel=1e-5
    )


def test_replace_stands_far_above_the_ratio_in_many_windows_of_noisy_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    alwa = ALWA(PAIR, interval=2)
    noise = 1 + 0.01 * torch.randn(2000, generator=generator)
    weights = [run_window(alwa, *with_ratio(0.4 * factor)) for factor in noise.tolist()]
    above = sum(value > 0.8 for value in weights) / len(weights)
    assert 0.1 < above < 0.6
    assert max(weights) <= 1


def test_replace_keeps_the_weight_when_the_second_loss_varies_more() -> None:
    alwa = ALWA(PAIR, interval=2)
    assert run_window(alwa, *with_ratio(1.5)) == 1.0
    assert run_window(alwa, *with_ratio(0.25)) == 0.25
    assert run_window(alwa, *with_ratio(0.9)) == 0.25  # weighted: 0.25 against 0.9


def test_replace_can_raise_the_weight_again_but_never_above_one() -> None:
    generator = torch.Generator().manual_seed(1)
    alwa = ALWA(PAIR, interval=2)
    ratios = (0.1 + 1.9 * torch.rand(300, generator=generator)).tolist()
    weights = [run_window(alwa, *with_ratio(ratio)) for ratio in ratios]
    rises = sum(after > before for before, after in pairwise(weights))
    assert rises >= 10
    assert min(weights) > 0
    assert max(weights) <= 1


def test_multiplicative_ratchets_down_to_the_smallest_ratio() -> None:
    alwa = ALWA(PAIR, interval=2, update="multiplicative")
    ratios = [0.5, 0.75, 0.375, 1.5, 0.25, 0.625]
    weights = [run_window(alwa, *with_ratio(ratio)) for ratio in ratios]
    assert weights == pytest.approx([0.5, 0.5, 0.375, 0.375, 0.25, 0.25])


def test_unweighted_follows_the_ratio_both_ways_up_to_one() -> None:
    alwa = ALWA(PAIR, interval=2, update="unweighted")
    ratios = [0.5, 0.75, 0.375, 1.5, 0.25, 0.625]
    weights = [run_window(alwa, *with_ratio(ratio)) for ratio in ratios]
    assert weights == pytest.approx([0.5, 0.75, 0.375, 1.0, 0.25, 0.625])


def test_unweighted_makes_the_weighted_statistics_equal_below_its_initial_weight() -> None:
    alwa = ALWA(PAIR, interval=2, initial=(0.5, 2.0), update="unweighted")
    ratios = [0.125, 0.2, 0.3, 0.1]  # the other weight is 2, so the goal is twice the ratio
    weights = [run_window(alwa, *with_ratio(ratio)) for ratio in ratios]
    assert weights == pytest.approx([0.25, 0.4, 0.5, 0.2])


@pytest.mark.parametrize(
    ("update", "initial", "expected"),
    [
        ("replace", 1.5, 0.9),  # below 1 by any update
        ("replace", 0.5, 0.9),  # where it may have to rise
        ("multiplicative", 1.5, 1.35),
        ("unweighted", 1.5, 1.35),
    ],
)
def test_an_initial_weight_beside_one_is_left_as_the_update_says(
    update: str, initial: float, expected: float
) -> None:
    alwa = ALWA(PAIR, interval=2, initial=(initial, 1.0), update=update)
    assert run_window(alwa, *with_ratio(0.9 * initial)) == pytest.approx(expected)


@pytest.mark.parametrize("initial", [0.5, 0.75, 1.25, 1.5])
@pytest.mark.parametrize("update", ["replace", "multiplicative", "unweighted"])
def test_no_update_lifts_the_weight_above_one_and_its_initial_value(
    update: str, initial: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    alwa = ALWA(PAIR, interval=2, initial=(initial, initial), update=update)
    for ratio in (0.2 + 1.6 * torch.rand(100, generator=generator)).tolist():
        assert 0 < run_window(alwa, *with_ratio(ratio)) <= max(1, initial)
        assert weight(alwa, "reg") == initial


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("update", ["replace", "multiplicative", "unweighted"])
def test_degenerate_windows_leave_the_weight_alone(update: str, variant: int) -> None:
    alwa = ALWA(PAIR, variant, interval=2, update=update)
    learned = run_window(alwa, *with_ratio(0.5))
    assert learned < 1
    flat, lively, nan, inf = (0.0, 0.0), (1.0, 5.0), (1.0, math.nan), (1.0, math.inf)
    for cls, reg in (
        (lively, flat),
        (lively, nan),
        (nan, lively),
        (inf, lively),
        (lively, inf),
        (flat, flat),
    ):
        assert run_window(alwa, cls, reg) == learned
    assert alwa.windows_completed == 7


@pytest.mark.parametrize("update", ["replace", "multiplicative", "unweighted"])
def test_losses_below_zero_leave_the_weight_alone(update: str) -> None:
    alwa = ALWA(PAIR, variant=1, interval=2, initial=(0.5, 1.0), update=update)
    # mean + deviation: -2 and -3, whose ratio of 1.5 says nothing
    assert run_window(alwa, (-4.0, -4.0), (-3.0, -3.0)) == 0.5
    assert run_window(alwa, (2.0, 3.0), (-9.0, -9.0)) == 0.5


def test_a_weight_never_sinks_to_zero() -> None:
    alwa = ALWA(PAIR, interval=2, update="multiplicative")
    for power in range(0, 60, 4):
        smallest = run_window(alwa, (2.0, 3.0), (1.0, 1.0 + 2.0**-power))
        assert smallest > 0
    alwa = ALWA(PAIR, interval=2)
    assert run_window(alwa, (0.0, 3e30), (0.0, 1e-30)) == 1.0


def test_pairs_do_not_influence_each_other() -> None:
    pairs = {"one": ("a", "b"), "two": ("c", "d")}
    together = ALWA(pairs, 1, interval=3)
    apart = [ALWA({name: pair}, 1, interval=3) for name, pair in pairs.items()]
    draws = torch.rand(12, 4, generator=torch.Generator().manual_seed(3))
    draws *= torch.tensor([4.0, 1.0, 1.0, 3.0])
    for row in draws:
        losses: dict[str, Tensor] = dict(zip("abcd", row, strict=True))
        together(losses)
        for alwa in apart:
            alwa(losses)
    separate = {name: value for alwa in apart for name, value in alwa.weights().items()}
    assert together.weights() == separate
    assert separate["a"] < 1
    assert separate["c"] == 1


def test_alwa_trains_a_plain_model_in_a_plain_loop() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    alwa = ALWA({"any": ("noisy", "calm")}, variant=1, interval=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    totals = []
    for _ in range(60):
        noisy, calm = model(torch.randn(16, 3)).square().mean(dim=0).unbind()
        losses = alwa({"noisy": 5 * noisy, "calm": calm})
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert alwa.windows_completed == 12
    assert weight(alwa, "noisy") < 1
    assert totals[-1] < totals[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": 3}, r"variant must be 1 \(mean \+ std\) or 2 \(std\), got 3"),
        ({"variant": True}, "variant must be 1"),
        ({"variant": 1.0}, "variant must be 1"),
        ({"update": "add"}, "one of replace, multiplicative, unweighted, got 'add'"),
    ],
)
def test_unknown_rules_are_refused_with_the_choices(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALWA(PAIR, **options)


def test_by_default_it_is_the_papers_advice_for_one_stage() -> None:
    alwa = ALWA(PAIR)
    assert (alwa.variant, alwa.interval, alwa.initial, alwa.update) == (2, 100, [1, 1], "replace")


def test_the_rule_can_be_read_from_the_printed_module() -> None:
    printed = repr(ALWA(PAIR, variant=1, interval=50))
    for part in ("'cls', 'reg'", "variant=1", "interval=50", "update='replace'"):
        assert part in printed
