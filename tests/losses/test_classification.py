"""Laws of the classification losses: parity, closed forms, extreme logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

from losses.classification import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    sigmoid_focal_loss,
)

REDUCTIONS = ["none", "mean", "sum"]
Loss = Callable[..., Tensor]


def random_pair(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """``(40, 5)`` logits and targets of 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    targets = torch.rand(40, 5, generator=generator) < 0.3
    return logits.to(dtype), targets.to(dtype)


def random_classes(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """``(40, 5)`` logits and ``(40,)`` class indices."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(5, (40,), generator=generator)


def value_and_gradient(
    loss: Loss, logits: Tensor, targets: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, targets, **options)
    return value, torch.autograd.grad(value.sum(), logits)[0]


def assert_equal(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("gamma", [0, 1.5, 2])
@pytest.mark.parametrize("alpha", [-1, 0, 0.25, 1])
def test_focal_loss_equals_torchvision(alpha: float, gamma: float, reduction: str) -> None:
    pair = random_pair(seed=0)
    options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
    ours = value_and_gradient(sigmoid_focal_loss, *pair, **options)
    assert_equal(ours, value_and_gradient(torchvision.ops.sigmoid_focal_loss, *pair, **options))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_binary_cross_entropy_equals_torch(reduction: str) -> None:
    pair = random_pair(seed=1)
    ours = value_and_gradient(binary_cross_entropy_with_logits, *pair, reduction=reduction)
    theirs = value_and_gradient(F.binary_cross_entropy_with_logits, *pair, reduction=reduction)
    assert_equal(ours, theirs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_softmax_cross_entropy_equals_torch(reduction: str) -> None:
    pair = random_classes(seed=1)
    ours = value_and_gradient(cross_entropy, *pair, reduction=reduction)
    assert_equal(ours, value_and_gradient(F.cross_entropy, *pair, reduction=reduction))


def test_the_namesakes_take_the_same_defaults() -> None:
    pair, classes = random_pair(seed=2), random_classes(seed=2)
    theirs = torchvision.ops.sigmoid_focal_loss(*pair)
    torch.testing.assert_close(sigmoid_focal_loss(*pair), theirs)
    theirs = F.binary_cross_entropy_with_logits(*pair)
    torch.testing.assert_close(binary_cross_entropy_with_logits(*pair), theirs)
    torch.testing.assert_close(cross_entropy(*classes), F.cross_entropy(*classes))


def test_focal_loss_by_hand() -> None:
    # sigmoid(log 3) = 3/4: the positive misses by 1/4, the negative by 3/4.
    logits, targets = torch.full((2,), math.log(3.0)), torch.tensor([1.0, 0.0])
    by_hand = [0.25 * 0.25**2 * -math.log(0.75), 0.75 * 0.75**2 * -math.log(0.25)]
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets), torch.tensor(by_hand))


def test_focal_loss_of_sure_predictions_keeps_its_digits() -> None:
    # Far from the boundary p is about exp(logit): the loss of a negative is 0.75 p**3.
    logits = torch.tensor([-12.0, -20.0], dtype=torch.float64)
    losses = sigmoid_focal_loss(logits, torch.zeros_like(logits))
    torch.testing.assert_close(losses, 0.75 * (3 * logits).exp(), rtol=1e-4, atol=0)


def test_cross_entropies_by_hand() -> None:
    logit = torch.tensor([math.log(3.0)])
    hard = binary_cross_entropy_with_logits(logit, torch.ones(1))
    soft = binary_cross_entropy_with_logits(logit, torch.full((1,), 0.5))
    assert hard.item() == pytest.approx(-math.log(0.75))
    assert soft.item() == pytest.approx(-0.5 * (math.log(0.75) + math.log(0.25)))
    classes = cross_entropy(torch.tensor([[0.0, math.log(2.0), 0.0]]), torch.tensor([1]))
    assert classes.item() == pytest.approx(math.log(2.0))


def test_focal_loss_is_the_weighted_cross_entropy_without_gamma_and_below_it_with() -> None:
    logits, targets = random_pair(seed=3)
    plain = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    assert torch.equal(sigmoid_focal_loss(logits, targets, alpha=-1, gamma=0), plain)
    assert (sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2) <= plain).all()


def focal_in_closed_form(logit: float, target: float, gamma: float) -> tuple[float, float]:
    """Value and derivative of the focal loss with alpha 0.25, from 1 - p_t = sigmoid(-s x)."""
    sign, alpha = (1, 0.25) if target else (-1, 0.75)
    x = sign * logit
    entropy = math.log1p(math.exp(-abs(x))) + max(-x, 0)
    miss = 1 / (1 + math.exp(x)) if x < 700 else 0.0
    slope = -(miss**gamma) * (miss + gamma * (1 - miss) * entropy)
    return alpha * miss**gamma * entropy, alpha * sign * slope


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_focal_loss_keeps_its_closed_form_at_extreme_logits(target: float, gamma: float) -> None:
    logits = [sign * size for sign in (-1, 1) for size in (0.0, 1e-6, 0.5, 5.0, 15.0, 90.0, 1e4)]
    value, gradient = value_and_gradient(
        sigmoid_focal_loss, torch.tensor(logits), torch.full((14,), target), gamma=gamma
    )
    expected = torch.tensor([focal_in_closed_form(x, target, gamma) for x in logits])
    torch.testing.assert_close(value, expected[:, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient, expected[:, 1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_losses_are_finite_for_every_finite_logit(gamma: float) -> None:
    values = torch.tensor([0.0, 1e-45, 1e-7, 1.0, 17.0, 88.0, 104.0, 1e4, 1e30, 1e38])
    logits, targets = torch.cartesian_prod(
        torch.cat([values, -values]), torch.tensor([0.0, 0.5, 1.0])
    ).unbind(1)
    focal = value_and_gradient(sigmoid_focal_loss, logits, targets, gamma=gamma)
    binary = value_and_gradient(binary_cross_entropy_with_logits, logits, targets, reduction="none")
    rows = torch.stack([logits, -logits / 2], dim=1)
    softmax = value_and_gradient(cross_entropy, rows, targets.long(), reduction="none")
    assert all(result.isfinite().all() for result in (*focal, *binary, *softmax))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_passes_gradcheck(gamma: float) -> None:
    logits, targets = random_pair(seed=4, dtype=torch.float64)
    soft = 0.1 + 0.8 * targets
    logits = logits[:4].requires_grad_()
    for labels in (targets[:4], soft[:4]):
        check = torch.autograd.gradcheck(
            lambda x, y=labels: sigmoid_focal_loss(x, y, gamma=gamma), logits
        )
        assert check


def test_cross_entropies_pass_gradcheck() -> None:
    logits, targets = random_pair(seed=5, dtype=torch.float64)
    logits = logits[:4].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: binary_cross_entropy_with_logits(x, targets[:4], reduction="none"), logits
    )
    classes = torch.tensor([0, 4, 2, 1])
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, classes, reduction="none"), logits)


def test_negating_logits_and_targets_swaps_the_classes() -> None:
    logits, targets = random_pair(seed=6)
    swapped = sigmoid_focal_loss(-logits, 1 - targets, alpha=0.75)
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, targets, alpha=0.25), swapped, atol=1e-6, rtol=0
    )


def test_softmax_cross_entropy_does_not_change_when_all_logits_move() -> None:
    logits, classes = random_classes(seed=6)
    torch.testing.assert_close(cross_entropy(logits + 100, classes), cross_entropy(logits, classes))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_elements_give_zero_with_a_gradient(reduction: str) -> None:
    none = torch.zeros(0, 5)
    for loss, targets in (
        (sigmoid_focal_loss, none),
        (binary_cross_entropy_with_logits, none),
        (cross_entropy, torch.zeros(0, dtype=torch.int64)),
    ):
        value, gradient = value_and_gradient(loss, none, targets, reduction=reduction)
        assert value == 0
        assert gradient.shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_and_autocast_give_float32(dtype: torch.dtype) -> None:
    (logits, targets), (scores, classes) = random_pair(seed=7), random_classes(seed=7)
    logits, scores = logits.to(dtype), scores.to(dtype)
    for loss, inputs, labels in (
        (sigmoid_focal_loss, logits, targets.to(dtype)),
        (binary_cross_entropy_with_logits, logits, targets.to(dtype)),
        (cross_entropy, scores, classes),
    ):
        expected = loss(inputs.float(), labels.float() if labels.is_floating_point() else labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under_autocast = loss(inputs, labels)
        for result in (loss(inputs, labels), under_autocast):
            assert result.dtype == torch.float32
            assert torch.equal(result, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_focal_loss_can_be_scripted_like_its_namesake() -> None:
    logits, targets = random_pair(seed=8)
    scripted = torch.jit.script(sigmoid_focal_loss)
    for reduction in REDUCTIONS:
        plain = sigmoid_focal_loss(logits, targets, 0.4, 2, reduction)
        torch.testing.assert_close(scripted(logits, targets, 0.4, 2, reduction), plain)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (sigmoid_focal_loss, torch.zeros(2, 3)),
        (binary_cross_entropy_with_logits, torch.zeros(2, 3)),
        (cross_entropy, torch.zeros(2, dtype=torch.int64)),
    ],
)
def test_an_unknown_reduction_is_refused_with_the_choices(loss: Loss, targets: Tensor) -> None:
    with pytest.raises(ValueError, match="Invalid reduction 'xyz'; choose none, mean or sum"):
        loss(torch.zeros(2, 3), targets, reduction="xyz")


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (sigmoid_focal_loss, torch.zeros(3)),
        (binary_cross_entropy_with_logits, torch.zeros(3)),
        (cross_entropy, torch.zeros(3, dtype=torch.int64)),
        (cross_entropy, torch.zeros(2, 3)),
    ],
)
def test_targets_of_another_shape_are_refused(loss: Loss, targets: Tensor) -> None:
    with pytest.raises(ValueError, match="Invalid shapes"):
        loss(torch.zeros(2, 3), targets)


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"alpha": -0.5}, {"gamma": -1.0}])
def test_alpha_and_gamma_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"Invalid (alpha|gamma) value"):
        sigmoid_focal_loss(torch.zeros(2), torch.zeros(2), **options)
