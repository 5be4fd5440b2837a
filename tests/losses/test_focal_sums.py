"""The focal loss of anchors with a class index: the plain form, and the fast one for the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvisions

from losses import focal_sums as module
from losses.focal_sums import fast_focal_sums, focal_sums

CLASSES = 5


def anchors(images: int = 2, count: int = 300, spread: float = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(images, count, CLASSES, generator=generator)
    return logits, torch.randint(-2, CLASSES, (images, count), generator=generator)


def value_and_gradient(function, logits: Tensor, labels: Tensor, **options) -> tuple:
    logits = logits.clone().requires_grad_()
    sums = function(logits, labels, **options)
    (sums * torch.linspace(0.5, 2, len(sums))).sum().backward()
    return sums.detach(), logits.grad


def test_sums_are_torchvisions_over_the_anchors_that_count() -> None:
    logits, labels = anchors()
    for image, image_labels, total in zip(logits, labels, focal_sums(logits, labels), strict=True):
        counted = image_labels != -2
        one_hot = torch.zeros(len(image), CLASSES)
        positive = (image_labels >= 0).nonzero().squeeze(1)
        one_hot[positive, image_labels[positive]] = 1
        expected = torchvisions(image[counted], one_hot[counted], reduction="sum")
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("alpha", [0.25, 0.9, -1])
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 3])
def test_the_fast_form_gives_the_plain_value_and_gradient(alpha: float, gamma: float) -> None:
    logits, labels = anchors()
    expected = value_and_gradient(focal_sums, logits, labels, alpha=alpha, gamma=gamma)
    found = value_and_gradient(fast_focal_sums, logits, labels, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10**6])
def test_the_size_of_a_chunk_does_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    logits, labels = anchors(count=40)
    expected = value_and_gradient(focal_sums, logits, labels)
    torch.testing.assert_close(
        value_and_gradient(fast_focal_sums, logits, labels), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("label", [-2, -1, 0])
def test_anchors_of_one_kind_and_no_anchors_are_fine(label: int) -> None:
    for count in (0, 1, 9):
        logits, labels = anchors(count=count)
        labels.fill_(label)
        expected = value_and_gradient(focal_sums, logits, labels)
        found = value_and_gradient(fast_focal_sums, logits, labels)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert (found[0] == 0).all() == (label == -2 or count == 0)


@pytest.mark.parametrize("size", [0.0, 30.0, 90.0, 1e4, 1e30])
def test_value_and_gradient_are_finite_for_every_finite_logit(size: float) -> None:
    logits, labels = anchors(spread=size)
    for values in value_and_gradient(fast_focal_sums, logits.clamp(-1e30, 1e30), labels):
        assert values.isfinite().all()


def test_a_nan_stays_a_nan() -> None:
    logits, labels = anchors()
    logits[0, labels[0].argmax(), 0] = torch.nan
    sums, _ = value_and_gradient(fast_focal_sums, logits, labels)
    assert sums[0].isnan()
    assert sums[1].isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = anchors()
    logits = logits.to(dtype)
    sums, gradient = value_and_gradient(fast_focal_sums, logits, labels)
    expected, expected_gradient = value_and_gradient(focal_sums, logits, labels)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, expected_gradient)


def test_what_the_loss_is_multiplied_by_is_not_rounded_with_its_gradient() -> None:
    logits, labels = anchors()
    logits = logits.bfloat16().requires_grad_()
    sums = fast_focal_sums(logits, labels)
    factors = torch.tensor([1.0035, 0.3345])  # bfloat16 has 1 and 0.334
    (plain,) = torch.autograd.grad(sums.sum(), logits, retain_graph=True)
    (scaled,) = torch.autograd.grad((sums * factors).sum(), logits)
    assert torch.equal(scaled, (plain.float() * factors.view(-1, 1, 1)).bfloat16())


def test_the_gradient_can_be_asked_for_twice() -> None:
    logits, labels = anchors()
    logits.requires_grad_()
    total = fast_focal_sums(logits, labels).sum()
    first = torch.autograd.grad(total, logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, logits), first, rtol=0, atol=0)


def test_a_scaler_reaches_small_gradients_of_float16() -> None:
    logits, labels = anchors()
    logits, scale = (logits - 6).half().requires_grad_(), 2.0**15
    (scale * fast_focal_sums(logits, labels).sum()).backward()
    exact = logits.detach().float().requires_grad_()
    (scale * focal_sums(exact, labels).sum()).backward()
    lost = (logits.grad == 0) & (exact.grad.half() != 0)
    assert not lost.any()
