"""The passes of a GPU, in slots and from shapes alone, against the plain ones; both on the CPU.

The one kernel that they cannot do without is done by torchvision here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rcnn_twins import build_ours, missing_gradients, random_images, random_targets, spread_outputs
from torch import Tensor
from torchvision.ops import nms

EVERYTHING = {"batch_size_per_image": 10**6}
COUNTS = [(4, 1, 2), (0, 3, 0), (0, 0, 0)]


def keep_best(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    keep = torch.zeros_like(valid)
    for row, candidates in enumerate(valid):
        rows = candidates.nonzero().squeeze(1)
        falling = -torch.arange(len(rows), dtype=torch.float32)
        keep[row, rows[nms(boxes[row, rows], falling, threshold)]] = True
    return keep


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="PyTorch brings Triton along on Linux alone")
    monkeypatch.setattr("detector.fast.proposals_on_gpu.keep_best", keep_best)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)


def build(kind: str) -> Any:
    torch.manual_seed(0)
    roi = {"representation_size": 32, **EVERYTHING}
    detector = build_ours(kind, rpn=EVERYTHING, roi=roi, norm="frozen")
    spread_outputs(detector)
    return detector


def in_slots(detector: Any, images: list[Tensor], targets: Any = None) -> Any:
    batch = detector.transform(images)
    return detector._forward_in_slots(batch.tensors, batch.image_sizes, targets)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_losses_and_gradients_are_those_of_the_plain_pass(kind, counts) -> None:
    detector = build(kind)
    images, targets = random_images(), random_targets(counts)
    results = []
    for run in (detector, lambda *batch: in_slots(detector, *batch)):
        detector.zero_grad(set_to_none=True)
        losses = run(images, targets)
        sum(losses.values()).backward()
        assert missing_gradients(detector) == []
        gradients = [p.grad.flatten() for p in detector.parameters() if p.requires_grad]
        results.append((losses, torch.cat(gradients)))
    (plain, plain_gradient), (fast, gradient) = results
    assert fast.keys() == plain.keys()
    for name, loss in fast.items():
        torch.testing.assert_close(loss, plain[name], rtol=1e-5, atol=1e-6)
    assert (gradient - plain_gradient).norm() <= 1e-5 * plain_gradient.norm()


def test_without_a_slot_for_positives_the_loss_of_masks_is_zero() -> None:
    torch.manual_seed(0)
    detector = build_ours("mask_rcnn", roi={"representation_size": 32, "positive_fraction": 0.0})
    losses = in_slots(detector, random_images(), random_targets((4, 1, 2)))
    sum(losses.values()).backward()
    assert losses["loss_mask"] == 0
    assert missing_gradients(detector) == []


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_detections_are_those_of_the_plain_pass(kind) -> None:
    detector, images = build(kind).eval(), random_images()
    with torch.no_grad():
        plain, fast = detector(images), in_slots(detector, images)
    assert sum(len(image["boxes"]) for image in plain) > 0
    for mine, expected in zip(fast, plain, strict=True):
        assert mine.keys() == expected.keys()
        for name, values in mine.items():
            torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_a_pass_looks_at_no_value(kind, monkeypatch) -> None:
    """On PyTorch's device without values, where a look at one raises."""
    monkeypatch.setattr("detector.fast.proposals_on_gpu.keep_best", lambda _, valid, __: valid)
    monkeypatch.setattr(
        "detector.roi_pooling.RoIPooler.forward",
        lambda self, features, rois: (
            rois.new_empty((len(rois), features["0"].shape[1], *self.output_size))
            + sum(features[name].sum() for name in self.featmap_names)
        ),
    )
    torch.manual_seed(0)
    detector = build_ours(kind).to("meta")
    targets = random_targets((3, 0, 1)).with_few_shapes().to(torch.device("meta"))
    images, corners = torch.empty(3, 3, 96, 160, device="meta"), torch.empty(3, 2, device="meta")
    outputs = detector._pass_in_slots(images, corners, targets.boxes, targets.labels)
    losses = list(outputs[:4])
    if kind == "mask_rcnn":
        losses.append(detector._mask_loss_in_slots(outputs[4:], targets))
    assert [tuple(loss.shape) for loss in losses] == [()] * len(losses)
    torch.stack(losses).sum().backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
    with torch.no_grad():
        rois, scores, deltas, *maps = detector.eval()._pass_in_slots(images, corners)
    assert len(rois) == len(scores) == len(deltas) > 0
    assert len(maps) == (4 if kind == "mask_rcnn" else 0)
