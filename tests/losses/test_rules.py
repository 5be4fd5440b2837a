"""Laws that every rule keeps while a network trains under it."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from recorded_operations import READ_BY_THE_HOST, RecordOperations
from torch import Tensor
from toy_training import PAIR, RULES, ToyTraining, mean_losses

from losses import (
    ALWA,
    DWA,
    GLS,
    CoVWeighting,
    FixedWeights,
    GradNorm,
    LossWeighting,
    RandomWeights,
    SelfBalancing,
    UncertaintyWeighting,
)

every_rule = pytest.mark.parametrize("rule", RULES)
WITHIN_THE_CALL = {"gls", "self_balancing"}  # each micro-batch has its own weights


def training_under(rule: str, interval: int = 4) -> ToyTraining:
    return ToyTraining(RULES[rule](interval))


def scalars(cls: float, box: float) -> dict[str, Tensor]:
    return {"cls": torch.tensor(cls), "box": torch.tensor(box)}


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_rule
def test_training_resumes_to_the_bit_also_in_the_middle_of_a_window(rule: str) -> None:
    undisturbed = training_under(rule)
    for step in range(14):
        undisturbed.step(step, parts=1 + step % 2)
    for stop in (0, 1, 4, 7, 10):
        first, second = training_under(rule), training_under(rule)
        for step in range(stop):
            first.step(step, parts=1 + step % 2)
        for step in range(3):  # what was there before must not matter
            second.step(100 + step)
        second.load_state_dict(through_a_file(first.state_dict()))
        for step in range(stop, 14):
            second.step(step, parts=1 + step % 2)
        for name, value in undisturbed.trained.items():
            assert torch.equal(second.trained[name], value), (stop, name)


@every_rule
def test_the_gradient_of_the_network_is_that_of_the_losses_times_constant_weights(
    rule: str,
) -> None:
    training = training_under(rule)
    for step in range(9):
        raw = training.losses(step)
        layers = list(training.layers)
        weighted = training.weighting(raw)
        applied = training.weighting.applied_weights()
        assert not any(weight.requires_grad for weight in applied.values())
        total = sum(raw[name] * weight for name, weight in applied.items()) + raw["other"]
        expected = torch.autograd.grad(total, layers, retain_graph=True)
        ours = torch.autograd.grad(sum(weighted.values()), layers, retain_graph=True)
        torch.testing.assert_close(ours, expected)
        for name, weight in applied.items():
            torch.testing.assert_close(weighted[name], raw[name] * weight)
        assert weighted["other"] is raw["other"]
        training.step(step + 50)


@every_rule
def test_the_network_learns_under_the_rule(rule: str) -> None:
    training = training_under(rule)

    def error() -> Tensor:
        with torch.no_grad():
            losses = mean_losses([training.losses(1000 + number) for number in range(8)])
        return losses["cls"] * losses["box"]

    before = error()
    for step in range(40):
        training.step(step)
    assert error() < 0.7 * before


@every_rule
def test_the_statistics_of_a_window_are_those_of_the_losses_returned(rule: str) -> None:
    training = training_under(rule)
    returned = [training.step(step) for step in range(8)][4:]
    for name, statistics in training.weighting.last_window().items():
        values = torch.stack([weighted[name].detach() for weighted in returned])
        torch.testing.assert_close(
            torch.stack(statistics), torch.stack([values.mean(), values.std()])
        )


@every_rule
def test_evaluation_mode_keeps_the_weights_and_records_nothing(rule: str) -> None:
    training = training_under(rule)
    for step in range(5):
        training.step(step)
    weighting = training.weighting.eval()
    before = through_a_file(weighting.state_dict())
    weights = {name: weight.item() for name, weight in weighting.weights().items()}
    weighted = weighting(scalars(3.0, 0.25))
    assert weighted["cls"].item() == pytest.approx(3 * weights["cls"])
    assert weighted["box"].item() == pytest.approx(0.25 * weights["box"])
    after = weighting.state_dict()
    for key, value in before.items():
        same = torch.equal(after[key], value) if isinstance(value, Tensor) else after[key] == value
        assert same, key


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"gradnorm"}))  # it needs gradients itself
def test_what_was_recorded_in_inference_mode_serves_training(rule: str) -> None:
    training = training_under(rule, interval=2)
    with torch.inference_mode():
        for step in range(2):
            returned = training.weighting(training.losses(step))
    assert returned["cls"].is_inference()
    assert training.weighting.windows_completed == 1
    before = training.layers[0].detach().clone()
    training.step(2)
    assert not torch.equal(training.layers[0], before)
    training.weighting.load_state_dict(training.weighting.state_dict())


@every_rule
def test_a_state_that_is_loaded_before_the_backward_pass_does_not_disturb_it(rule: str) -> None:
    gradients = []
    for loads in (False, True):
        training = training_under(rule)
        training.step(0)
        total = sum(training.weighting(training.losses(1)).values())
        if loads:
            other = RULES[rule](4)
            training.weighting.load_state_dict(other.state_dict())
        gradients.append(torch.autograd.grad(total, list(training.layers)))
    for undisturbed, disturbed in zip(*gradients, strict=True):
        assert torch.equal(undisturbed, disturbed)


@pytest.mark.parametrize("rule", sorted(set(RULES) - WITHIN_THE_CALL))
def test_an_iteration_is_the_mean_of_its_micro_batches(rule: str) -> None:
    split, whole = training_under(rule), training_under(rule)
    for step in range(10):
        split.step(step, parts=3)
        losses = mean_losses([whole.losses(step, part) for part in range(3)])
        whole.optimizer.zero_grad()
        sum(whole.weighting(losses).values()).backward()
        whole.optimizer.step()
    for name, value in whole.trained.items():
        torch.testing.assert_close(split.trained[name], value, msg=name)


# The others' weights are not computed from the losses that they are given.
@pytest.mark.parametrize("rule", sorted(set(RULES) - {"fixed", "uncertainty"}))
def test_losses_of_zero_and_without_end_leave_weights_that_work(rule: str) -> None:
    weighting = RULES[rule](interval=2)
    shared = torch.tensor([1.0, 2.0], requires_grad=True)
    weighting.watch([shared])
    values = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (math.inf, 1.0), (1.0, math.nan), (2.0, 1.0)]
    for cls, box in values * 2:
        weighting({"cls": cls * shared.sum(), "box": box * shared.prod()})
        for weight in weighting.weights().values():
            assert 0 < weight.item() < math.inf


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"rlw", "gradnorm"}))
def test_pairs_do_not_influence_each_other(rule: str) -> None:
    pairs = {"one": ("a", "b"), "two": ("c", "d")}
    build = type(RULES[rule](3))
    together = build(pairs, interval=3)
    apart = [build({name: pair}, interval=3) for name, pair in pairs.items()]
    draws = 0.1 + torch.rand(12, 4, generator=torch.Generator().manual_seed(3))
    for row in draws * torch.tensor([4.0, 1.0, 1.0, 3.0]):
        losses = dict(zip("abcd", row, strict=True))
        together(losses)
        for weighting in apart:
            weighting(losses)
    separate = {name: value for alone in apart for name, value in alone.weights().items()}
    assert together.weights() == separate


def test_a_state_of_another_rule_is_refused() -> None:
    for one, other in pairwise(RULES):
        with pytest.raises(ValueError, match="saved with rule"):
            RULES[other](4).load_state_dict(RULES[one](4).state_dict(), strict=False)


OTHER_OPTIONS = {
    "fixed": [("weights", lambda: FixedWeights(PAIR, (0.5, 1.0), 4))],
    "alwa": [
        ("variant", lambda: ALWA(PAIR, 2, 4)),
        ("initial", lambda: ALWA(PAIR, 1, 4, initial=(2.0, 1.0))),
        ("update", lambda: ALWA(PAIR, 1, 4, update="unweighted")),
    ],
    "uncertainty": [("interval", lambda: UncertaintyWeighting(PAIR, 5))],
    "dwa": [("temperature", lambda: DWA(PAIR, 4, temperature=1.0))],
    "rlw": [("seed", lambda: RandomWeights(PAIR, 4, seed=1))],
    "gls": [("interval", lambda: GLS(PAIR, 5))],
    "cov": [("interval", lambda: CoVWeighting(PAIR, 5))],
    "self_balancing": [("interval", lambda: SelfBalancing(PAIR, 5))],
    "gradnorm": [
        ("initial", lambda: GradNorm(PAIR, 4, initial=(4.0, 4.0))),
        ("alpha", lambda: GradNorm(PAIR, 4, alpha=0.5)),
        ("lr", lambda: GradNorm(PAIR, 4, lr=0.1)),
    ],
}


@every_rule
def test_a_state_of_another_option_is_refused_by_name(rule: str) -> None:
    saved = through_a_file(RULES[rule](4).state_dict())
    for option, build in OTHER_OPTIONS[rule]:
        with pytest.raises(ValueError, match=f"saved with {option} .* build it with the same"):
            build().load_state_dict(saved)


@every_rule
def test_a_state_that_was_saved_before_an_option_was_is_read(rule: str) -> None:
    first = training_under(rule)
    for step in range(6):
        first.step(step)
    state = through_a_file(first.weighting.state_dict())
    for option, _ in OTHER_OPTIONS[rule]:
        del state["_extra_state"][option]
    second = RULES[rule](4)
    second.load_state_dict(state)
    assert second.iterations == 6
    assert torch.equal(second.lambdas, first.weighting.lambdas)


@every_rule
def test_the_host_never_reads_a_tensor(rule: str) -> None:
    training = training_under(rule)
    losses = [training.losses(step, part) for step in range(9) for part in range(2)]
    with RecordOperations() as recorded:
        for number, row in enumerate(losses):
            training.weighting(row, last_micro_batch=number % 2 == 1)
            training.weighting.applied_weights()
            training.weighting.last_window()
    assert training.weighting.windows_completed == 2
    assert "aten::std_mean" in recorded.names
    assert recorded.names & READ_BY_THE_HOST == set()


def moved_to(shared: Tensor, loss: Tensor, layer: Tensor) -> Tensor:
    """A loss on another device with the same value, and the same gradient there."""
    (gradient,) = torch.autograd.grad(loss, layer, retain_graph=True)
    slope = (shared * gradient.to(shared.device)).sum()
    return loss.detach().to(shared.device) + slope - slope.detach()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_rule
def test_on_cuda_nothing_waits_for_the_device_and_the_weights_are_those_of_the_cpu(
    rule: str,
) -> None:
    on_cpu = training_under(rule)
    on_cuda: LossWeighting = RULES[rule](4).to("cuda")
    shared = on_cpu.layers[0].detach().cuda().requires_grad_()
    on_cuda.watch([shared])
    raw = [on_cpu.losses(step) for step in range(9)]
    moved = [
        {name: moved_to(shared, loss, on_cpu.layers[0]) for name, loss in row.items()}
        for row in raw
    ]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row in moved:
            on_cuda(row)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for row in raw:
        on_cpu.weighting(row)
    torch.testing.assert_close(on_cuda.lambdas.cpu(), on_cpu.weighting.lambdas)


def test_a_weighting_moves_to_its_device_with_all_that_it_keeps() -> None:
    for rule, build in RULES.items():
        moved = build(4).to("meta")
        tensors = [*moved.buffers(), *moved.parameters()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}, rule
        assert {tensor.device.type for tensor in moved.applied_weights().values()} == {"meta"}


def test_only_uncertainty_has_parameters_for_the_optimizer() -> None:
    with_parameters = {rule for rule, build in RULES.items() if list(build(4).parameters())}
    assert with_parameters == {"uncertainty"}
