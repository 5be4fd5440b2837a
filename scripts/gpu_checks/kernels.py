"""The GPU kernels against the plain formulas, on random input.

``python -m scripts.gpu_checks.kernels cpu`` runs them without a GPU, in Triton's interpreter
(``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.ops import nms

from data.target import pad_targets
from detector.build import build_detector
from detector.config import DetectorConfig, RPNConfig
from detector.fast.channel_kernels import add_channels
from detector.fast.matching_kernels import match_on_gpu
from detector.fast.nms_kernels import keep_best
from detector.fast.roi_align_kernels import roi_align_on_gpu
from detector.matching import match_batch
from detector.roi_pooling import RoIPooler
from losses.anchor_labels import IGNORED
from losses.config import LossConfig
from losses.focal_kernels import focal_sums_on_gpu
from losses.focal_sums import focal_sums
from scripts.benchmarks.timing import worst_of

CLASSES = 13
LARGEST_DIFFERENCE = 1e-5  # relative: sums are in another order
FOCAL_OPTIONS = ((0.25, 2.0), (-1.0, 2.0), (0.5, 1.5), (0.25, 0.0))  # alpha, gamma
BOXES = ((0, 0), (1, 0, 7), (5, 5), (40,))  # per image
LISTS = ((1, 1), (2, 31), (3, 100), (2, 300))  # of boxes to suppress: how many, how long
MOST_PROPOSALS = 60  # per image
CANDIDATES = (120, 90, 7)  # of each level: on a CPU batched_nms works by shifts up to 1,000 in all
BINS, POINTS = 3, 2  # of RoIAlign, a side; sampling points of a bin and side
SPREAD, SIDE = 200.0, 80.0  # of boxes, pixels


def check_focal(device: torch.device, anchors: int) -> str:
    """Check values and gradients for several alphas and gammas, in float32 and bf16.

    Raises:
        SystemExit: they differ.
    """
    differences = []
    for dtype in (torch.float32, torch.bfloat16):
        for alpha, gamma in FOCAL_OPTIONS:
            logits = (6 * torch.randn(3, anchors, CLASSES, device=device)).to(dtype)
            labels = torch.randint(IGNORED, CLASSES, (3, anchors + 20), device=device)[:, 10:-10]
            scale = torch.rand(3, device=device)
            results = []
            for compute, x in ((focal_sums, logits.float()), (focal_sums_on_gpu, logits)):
                leaf = x.clone().requires_grad_()
                sums = compute(leaf, labels, alpha, gamma)
                (sums * scale).sum().backward()
                results.append((sums.detach(), leaf.grad))
            (plain, plain_gradient), (fast, gradient) = results
            differences.append(_difference(fast, plain))
            if not _difference(gradient, plain_gradient) <= _limit(dtype):
                raise SystemExit(f"focal loss, {dtype}: the gradient differs")
    worst = worst_of(differences)
    if not worst <= LARGEST_DIFFERENCE:
        raise SystemExit(f"focal loss: differs by {worst:.2g} (relative)")
    return f"focal loss: largest relative difference {worst:.1g}"


def check_matching(device: torch.device, anchors: int) -> str:
    """Check all matches, ties included, with shared anchors and with anchors per image.

    Raises:
        SystemExit: one differs.
    """
    compared = 0
    for counts in BOXES:
        boxes = [_boxes((count,), device) for count in counts]
        if counts[-1] > 1:
            boxes[-1][1] = boxes[-1][0]
        targets = pad_targets(boxes, [torch.zeros(n, dtype=torch.int64) for n in counts])
        for shape in ((anchors,), (len(counts), anchors)):
            candidates = _boxes(shape, device)
            if counts[-1] > 0:
                candidates[..., :3, :] = boxes[-1][0]
            for low_quality in (True, False):
                options = (candidates, targets, 0.5, 0.4, low_quality)
                if not torch.equal(match_on_gpu(*options), match_batch(*options)):
                    raise SystemExit(f"matching differs: {counts} boxes, {shape} anchors")
                compared += len(counts) * anchors
    return f"matching: {compared:,} matches are the same"


def check_suppression(device: torch.device) -> str:
    """Check that the kept boxes are torchvision's.

    Raises:
        SystemExit: they differ.
    """
    kept = 0
    for lists, length in LISTS:
        boxes = _boxes((lists, length), device)
        valid = torch.rand(lists, length, device=device) < 0.9
        keep = keep_best(boxes, valid, 0.3)
        for row in range(lists):
            candidates = valid[row].nonzero().squeeze(1)
            scores = -torch.arange(len(candidates), device=device, dtype=torch.float32)
            expected = candidates[nms(boxes[row][candidates], scores, 0.3)].sort().values
            if not torch.equal(keep[row].nonzero().squeeze(1), expected):
                raise SystemExit(f"suppression differs: {length} boxes")
        kept += int(keep.sum())
    return f"suppression: the same {kept} boxes are kept"


def check_proposals(device: torch.device, candidates: Sequence[int]) -> str:
    """Check the RPN's choice for all levels of all images at once against image by image.

    Raises:
        SystemExit: one differs.
    """
    few = RPNConfig(post_nms_top_n_train=MOST_PROPOSALS)
    config = DetectorConfig(type="faster_rcnn", backbone="resnet18", weights="none", rpn=few)
    rpn = build_detector(config, LossConfig(), 1).rpn.train()
    sizes = ((int(SPREAD), int(SPREAD) // 2), (int(SPREAD) // 2, int(SPREAD)))
    boxes = [_boxes((len(sizes), count), device) for count in candidates]
    boxes[0][:, 0, 2:] = boxes[0][:, 0, :2]  # without area
    scores = [
        torch.rand(len(sizes), count, device=device).sort(dim=1, descending=True).values
        for count in candidates
    ]
    levels = torch.arange(len(candidates), device=device)
    level = levels.repeat_interleave(torch.tensor(candidates, device=device))
    corners = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32, device=device)
    expected = [
        rpn.suppress(*candidate, level, size)
        for *candidate, size in zip(torch.cat(boxes, 1), torch.cat(scores, 1), sizes, strict=True)
    ]
    proposals = rpn.suppress_in_slots(boxes, scores, corners)
    for slots, valid, wanted in zip(proposals.boxes, proposals.valid, expected, strict=True):
        found = slots[valid]
        if not torch.equal(found, wanted):
            raise SystemExit(f"proposals differ: {len(found)} and {len(wanted)}")
    return f"proposals: the same {sum(map(len, expected))}"


def check_pooling(device: torch.device, rois: int, channels: int) -> str:
    """Check RoIAlign over a pyramid and its gradient against torchvision's, map by map.

    Some RoIs reach beyond their map, one is empty, the last map is read by none.

    Raises:
        SystemExit: they differ.
    """
    pooler = RoIPooler(["0", "1", "2", "3"], (2, 3, 4, 5), BINS, POINTS)
    boxes = _boxes((rois,), device) - SIDE / 2
    for first, side in ((1, 0.7), (2, 1.5)):  # for the second map and the third
        boxes[first::7, 2:] = boxes[first::7, :2] + side * SPREAD
    boxes[0, 2:] = boxes[0, :2]
    image = torch.arange(rois, device=device) % 2
    rows = torch.cat([image[:, None].float(), boxes], dim=1)
    map_of_roi = pooler.choose_maps(boxes)
    at_once = partial(
        roi_align_on_gpu, scales=pooler.scales_of_maps, size=BINS, sampling_ratio=POINTS
    )
    for dtype in (torch.float32, torch.bfloat16):
        sources = [torch.randn(2, channels, 50, 40, device=device).to(dtype) for _ in range(4)]
        results = []
        for pool, precision in ((pooler.pool_each_map, torch.float32), (at_once, dtype)):
            leaves = [source.clone().requires_grad_() for source in sources]
            maps = [leaf.to(precision) for leaf in leaves]
            pooled = pool(maps=maps, map_of_roi=map_of_roi, rois=rows)
            scale = torch.linspace(-1, 1, pooled.numel(), device=device).view(pooled.shape)
            (pooled.float() * scale).sum().backward()
            results.append((pooled.detach(), *(leaf.grad for leaf in leaves[:3])))
            if leaves[3].grad is None or leaves[3].grad.any():
                raise SystemExit("pooling: a map without RoIs has a gradient other than 0")
        for fast, plain in zip(results[1], results[0], strict=True):
            if not _difference(fast, plain) <= _limit(dtype):
                raise SystemExit(f"pooling: differs in {dtype}")
    return f"pooling: the same {rois} RoIs and gradients"


def check_channels(device: torch.device) -> str:
    """Check adding a value to each channel of a map, and its gradient.

    Raises:
        SystemExit: they differ.
    """
    for dtype in (torch.float32, torch.bfloat16):
        source = torch.randn(2, 24, 17, 19, device=device).to(dtype)
        results = []
        for add in (lambda maps, shift: maps + shift.view(-1, 1, 1), add_channels):
            leaf = source.clone().requires_grad_()
            shift = torch.linspace(-1, 1, 24, device=device, requires_grad=True)
            maps = (2 * leaf).contiguous(memory_format=torch.channels_last)
            total = add(maps, shift).float()
            (total * source.float()).sum().backward()
            results.append((total.detach(), leaf.grad, shift.grad))
        for fast, plain in zip(results[1], results[0], strict=True):
            if not _difference(fast, plain) <= _limit(dtype):
                raise SystemExit(f"channels: differ in {dtype}")
    return "channels: the same sums and gradients"


def _boxes(shape: Sequence[int], device: torch.device) -> Tensor:
    """``(*shape, 4)``."""
    corners = torch.rand(*shape, 2, device=device) * SPREAD
    return torch.cat([corners, corners + 1 + torch.rand_like(corners) * SIDE], dim=-1)


def _limit(dtype: torch.dtype) -> float:
    """Return the largest relative difference of values rounded to a type."""
    return LARGEST_DIFFERENCE + (torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0)


def _difference(value: Tensor | None, expected: Tensor | None) -> float:
    if value is None or expected is None:
        raise SystemExit("there is no gradient")
    return float((value.float() - expected.float()).norm() / expected.float().norm())


def check_kernels(
    device: torch.device, anchors: int = 100_000, rois: int = 1000, channels: int = 256
) -> Iterator[str]:
    """Run each kernel's check and yield its line; see the checks for what they raise."""
    torch.manual_seed(0)
    yield check_focal(device, anchors)
    yield check_matching(device, anchors)
    yield check_suppression(device)
    yield check_proposals(device, CANDIDATES)
    yield check_pooling(device, rois, channels)
    yield check_channels(device)


if __name__ == "__main__":
    for line in check_kernels(torch.device(sys.argv[1]), anchors=600, rois=10, channels=5):
        print(line, flush=True)
