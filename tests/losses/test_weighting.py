"""Laws that every loss weighting keeps: what it returns, records, saves and refuses."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recorded_operations import READ_BY_THE_HOST, RecordOperations
from torch import Tensor

from losses import ALWA, FixedWeights, LossWeighting

PAIRS = {"head": ("classification", "bbox_regression")}
TWO_PAIRS = {"first": ("a", "b"), "second": ("c", "d")}
Build = Callable[..., LossWeighting]


def fixed(
    pairs: dict[str, tuple[str, str]] = PAIRS,
    interval: int = 4,
    weights: tuple[float, float] = (0.5, 2.0),
) -> LossWeighting:
    return FixedWeights(pairs, weights, interval)


def alwa(
    pairs: dict[str, tuple[str, str]] = PAIRS,
    interval: int = 4,
    weights: tuple[float, float] = (0.5, 2.0),
) -> LossWeighting:
    return ALWA(pairs, variant=2, interval=interval, initial=weights)


both = pytest.mark.parametrize("build", [fixed, alwa])


def scalars(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def raw_losses(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Losses of ``count`` iterations; the classification loss varies five times as much."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, 2, generator=generator) * torch.tensor([5.0, 1.0]) + 0.5
    return [{"classification": row[0], "bbox_regression": row[1]} for row in draws]


def saved_and_read(weighting: LossWeighting) -> dict[str, Any]:
    """The state after a round through a file that may hold tensors and plain types only."""
    file = io.BytesIO()
    torch.save(weighting.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@both
def test_paired_losses_are_multiplied_by_their_weights(build: Build) -> None:
    weighted = build()(scalars(classification=3.0, bbox_regression=5.0))
    assert weighted["classification"] == 1.5
    assert weighted["bbox_regression"] == 10.0


@both
def test_losses_in_no_pair_pass_as_the_same_tensors_in_the_same_order(build: Build) -> None:
    losses = scalars(mask=1.0, classification=2.0, other=3.0, bbox_regression=4.0)
    weighted = build()(losses)
    assert list(weighted) == list(losses)
    assert weighted["mask"] is losses["mask"]
    assert weighted["other"] is losses["other"]
    assert losses["classification"] == 2.0


@both
def test_the_weight_is_a_constant_for_the_gradient(build: Build) -> None:
    weighting = build(interval=2)
    parameter = torch.tensor(3.0, requires_grad=True)
    for _ in range(4):
        weighted = weighting({"classification": parameter**2, "bbox_regression": parameter})
        weight = weighting.weights()["classification"]
        assert not weight.requires_grad
        (gradient,) = torch.autograd.grad(weighted["classification"], parameter)
        assert gradient == 6.0 * 0.5


def test_the_backward_pass_of_the_last_iteration_uses_the_weight_of_its_forward_pass() -> None:
    weighting = ALWA(PAIRS, interval=2)
    parameter = torch.tensor(1.0, requires_grad=True)
    weighting({"classification": 9 * parameter, "bbox_regression": 2 * parameter})
    weighted = weighting({"classification": 1 * parameter, "bbox_regression": 1 * parameter})
    assert weighting.weights()["classification"] == 0.125
    weighted["classification"].backward()
    assert parameter.grad == 1.0


@both
def test_each_weighted_loss_keeps_a_graph_of_its_own(build: Build) -> None:
    parameters = [torch.tensor(1.0, requires_grad=True) for _ in range(2)]
    names = ("classification", "bbox_regression")
    weighted = build()(dict(zip(names, parameters, strict=True)))
    weighted["classification"].backward()
    assert parameters[1].grad is None
    weighted["bbox_regression"].backward()
    assert [parameter.grad.item() for parameter in parameters] == [0.5, 2.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@both
def test_weighting_never_shortens_a_loss(build: Build, dtype: torch.dtype) -> None:
    loss = torch.tensor(1.25, dtype=dtype)
    weighted = build()({"classification": loss, "bbox_regression": loss})
    expected = torch.promote_types(dtype, torch.float32)
    assert {value.dtype for value in weighted.values()} == {expected}


@both
def test_the_last_window_holds_mean_and_deviation_of_the_weighted_losses(build: Build) -> None:
    weighting = build(interval=4)
    assert weighting.last_window() == {}
    losses = raw_losses(4)
    for row in losses:
        assert weighting.windows_completed == 0
        weighting(row)
    assert weighting.windows_completed == 1
    for name, weight in (("classification", 0.5), ("bbox_regression", 2.0)):
        values = weight * torch.stack([row[name] for row in losses]).double()
        mean, std = weighting.last_window()[name]
        assert mean.item() == pytest.approx(values.mean().item(), rel=1e-6)
        assert std.item() == pytest.approx(values.std(correction=1).item(), rel=1e-6)


@both
def test_a_window_that_was_read_stays_as_it_was(build: Build) -> None:
    weighting = build(interval=2)
    losses = raw_losses(6)
    for row in losses[:2]:
        weighting(row)
    kept = weighting.last_window()["classification"]
    values = [value.item() for value in kept]
    for row in losses[2:]:
        weighting(row)
    assert [value.item() for value in kept] == values
    assert [value.item() for value in weighting.last_window()["classification"]] != values


def test_fixed_weights_never_change() -> None:
    weighting = fixed(interval=2)
    for row in raw_losses(20):
        weighting(row)
        assert {name: w.item() for name, w in weighting.weights().items()} == {
            "classification": 0.5,
            "bbox_regression": 2.0,
        }


def test_alwa_is_constant_within_a_window() -> None:
    weighting = alwa(interval=5)
    seen = []
    for row in raw_losses(25):
        seen.append(weighting.weights()["classification"].item())
        weighting(row)
    windows = [seen[start : start + 5] for start in range(0, 25, 5)]
    assert all(len(set(window)) == 1 for window in windows)
    assert len({window[0] for window in windows}) > 1


@both
def test_evaluation_mode_weights_but_records_nothing(build: Build) -> None:
    weighting = build(interval=2)
    weighting(raw_losses(1)[0])
    before = saved_and_read(weighting)
    weighting.eval()
    for row in raw_losses(5, seed=1):
        assert weighting(row)["classification"] == 0.5 * row["classification"]
    after = saved_and_read(weighting)
    assert all(torch.equal(before[key], after[key]) for key in before if key != "_extra_state")
    assert before["_extra_state"] == after["_extra_state"]


@both
def test_an_iteration_is_the_mean_of_its_micro_batches(build: Build) -> None:
    whole, split = build(interval=3), build(interval=3)
    micro_batches = raw_losses(9)
    for step in range(3):
        group = micro_batches[3 * step : 3 * step + 3]
        whole({name: torch.stack([row[name] for row in group]).mean() for name in group[0]})
        for number, row in enumerate(group):
            assert split.position == step
            split(row, last_micro_batch=number == 2)
    assert whole.windows_completed == split.windows_completed == 1
    for ours, expected in zip(
        split.last_window().values(), whole.last_window().values(), strict=True
    ):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(split.lambdas, whole.lambdas)


@both
def test_groups_of_micro_batches_may_differ_in_length(build: Build) -> None:
    weighting = build(interval=2)
    for value, last in ((1.0, False), (3.0, True), (6.0, True)):
        weighting(scalars(classification=value, bbox_regression=1.0), last_micro_batch=last)
    mean, std = weighting.last_window()["classification"]
    assert mean == 0.5 * 4
    assert std.item() == pytest.approx(0.5 * 8**0.5)


@both
def test_resuming_in_the_middle_of_a_window_is_bit_exact(build: Build) -> None:
    losses = raw_losses(40)
    for stop in (0, 1, 7, 10, 20, 33):
        undisturbed, first, second = build(interval=10), build(interval=10), build(interval=10)
        for row in losses:
            undisturbed(row)
        for row in losses[:stop]:
            first(row)
        for row in losses[35:]:  # what was there before must not matter
            second(row)
        second(losses[0], last_micro_batch=False)
        second.load_state_dict(saved_and_read(first))
        assert second.last_window() == first.last_window()
        assert second.applied_weights() == first.weights()
        for row in losses[stop:]:
            second(row)
        assert second.windows_completed == undisturbed.windows_completed == 4
        for key, value in undisturbed.state_dict().items():
            if isinstance(value, Tensor):
                assert torch.equal(second.state_dict()[key], value), key


@both
def test_a_copy_goes_its_own_way(build: Build) -> None:
    weighting = build(interval=2)
    weighting(raw_losses(1)[0])
    other = copy.deepcopy(weighting)
    other(raw_losses(1)[0])
    assert (weighting.windows_completed, other.windows_completed) == (0, 1)
    assert (weighting.position, other.position) == (1, 0)


@both
def test_the_state_moves_with_the_module(build: Build) -> None:
    moved = build().to("meta")
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}
    assert list(moved.parameters()) == []


@pytest.mark.parametrize(
    ("saved", "loading", "message"),
    [
        (alwa(interval=4), alwa(interval=5), "saved with interval 4, but this weighting has 5"),
        (alwa(), alwa({"rpn": ("classification", "bbox_regression")}), "saved with pairs"),
        (alwa(), alwa({"head": ("bbox_regression", "classification")}), "saved with pairs"),
        (alwa(TWO_PAIRS), alwa({k: TWO_PAIRS[k] for k in ("second", "first")}), "with pairs"),
        (alwa(), fixed(), "saved with rule 'ALWA', but this weighting has 'FixedWeights'"),
        (fixed(), fixed(weights=(1.0, 1.0)), r"saved with weights \[0.5, 2.0\]"),
    ],
)
def test_a_state_of_another_weighting_is_refused(
    saved: LossWeighting, loading: LossWeighting, message: str
) -> None:
    names = [name for pair in saved.pairs.values() for name in pair]
    saved({name: torch.tensor(3.0) for name in names})
    before = {name: value.clone() for name, value in loading.named_buffers()}
    with pytest.raises(ValueError, match=message):
        loading.load_state_dict(saved.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in loading.named_buffers())


@pytest.mark.parametrize("update", ["replace", "multiplicative", "unweighted", None])
def test_the_host_never_reads_a_tensor_also_when_a_window_closes(update: str | None) -> None:
    weighting = fixed(interval=3) if update is None else ALWA(PAIRS, 1, 3, update=update)
    with RecordOperations() as recorded:
        for number, row in enumerate(raw_losses(14)):
            weighting(row, last_micro_batch=number % 2 == 1)
            weighting.weights()
            weighting.last_window()
        weighting.get_extra_state()
    assert weighting.windows_completed == 2
    assert "aten::std_mean" in recorded.names
    assert recorded.names & (READ_BY_THE_HOST | {"aten::_to_copy"}) == set()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_nothing_waits_for_the_device_and_the_weights_are_those_of_the_cpu() -> None:
    losses = raw_losses(12)
    on_cpu, on_cuda = alwa(interval=3), alwa(interval=3).to("cuda")
    moved = [{name: loss.to("cuda") for name, loss in row.items()} for row in losses]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row in moved:
            on_cuda(row)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for row in losses:
        on_cpu(row)
    torch.testing.assert_close(on_cuda.lambdas.cpu(), on_cpu.lambdas)


@both
def test_a_missing_loss_is_named_with_those_that_are_there(build: Build) -> None:
    message = (
        "pair 'head' needs the loss 'bbox_regression', which is not among the losses given: "
        "classification, mask"
    )
    with pytest.raises(ValueError, match=message):
        build()(scalars(classification=1.0, mask=1.0))


@both
def test_a_loss_that_is_no_scalar_or_elsewhere_is_named(build: Build) -> None:
    scalar = torch.tensor(1.0)
    with pytest.raises(ValueError, match="'classification' must be a scalar tensor"):
        build()({"classification": torch.ones(2), "bbox_regression": scalar})
    with pytest.raises(ValueError, match="'bbox_regression' must be a scalar"):
        build()({"classification": scalar, "bbox_regression": 1.0})
    with pytest.raises(ValueError, match=r"'bbox_regression' is on meta, its weight on cpu"):
        build()({"classification": scalar, "bbox_regression": scalar.to("meta")})


@both
def test_a_refused_iteration_leaves_no_trace(build: Build) -> None:
    weighting = build()
    with pytest.raises(ValueError, match="bbox_regression"):
        weighting(scalars(classification=1.0))
    assert weighting.position == 0


@pytest.mark.parametrize("interval", [1, 0, -3, 2.5, True, "100"])
@both
def test_an_interval_without_a_deviation_is_refused(build: Build, interval: Any) -> None:
    with pytest.raises(ValueError, match=f"interval must be .* at least 2, got {interval!r}"):
        build(interval=interval)


def test_whole_numbers_of_numpy_are_taken_and_kept_as_python_has_them() -> None:
    weighting = ALWA(PAIRS, variant=np.int64(1), interval=np.int64(5))
    assert (type(weighting.variant), type(weighting.interval)) == (int, int)
    assert saved_and_read(weighting)["_extra_state"]["interval"] == 5


@pytest.mark.parametrize(
    "weights",
    [
        (0.0, 1.0),
        (1.0, -1.0),
        (1.0,),
        (1.0, 1.0, 1.0),
        (float("nan"), 1),
        (1, float("inf")),
        (1e-50, 1),
        (1, 1e39),
        (1, "a"),
        1.0,
    ],
)
@both
def test_weights_that_are_not_two_positive_numbers_are_refused(build: Build, weights: Any) -> None:
    with pytest.raises(ValueError, match="weights must be two positive numbers in the range"):
        build(weights=weights)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({}, "pairs must name at least one pair"),
        ({"head": ("a", "a")}, "pair 'head': loss 'a' is already in a pair"),
        ({"one": ("a", "b"), "two": ("c", "a")}, "pair 'two': loss 'a' is already in a pair"),
        ({"head": ("a", "b", "c")}, "pair 'head' must name two losses"),
        ([("a", "b")], "pairs must name at least one pair .* got .*'a', 'b'"),
        ({"head": {"a", "b"}}, "pair 'head' must name two losses"),
        ({"head": "ab"}, "pair 'head' must name two losses, got 'ab'"),
    ],
)
@both
def test_pairs_that_are_no_pairs_are_refused(build: Build, pairs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(pairs)
