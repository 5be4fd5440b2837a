"""Whole-batch matching equals torchvision's image by image; sampling keeps its promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from data.target import pad_targets
from detector import matching
from detector.fast import host_matching
from detector.fast.host_matching import match_on_host
from detector.matching import BalancedSampler, gather_matched, match_batch

PATHS = [match_batch, match_on_host]  # any device's, and the CPU's
COUNTS = [(0,), (1,), (0, 0), (3, 0, 1), (0, 40, 2, 7), (300, 1, 0, 120)]


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation returns, and what makes the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in {"_local_scalar_dense", "nonzero", "_unique2"}:
            self.waits.append(str(func))
        # Views of one shared row take no memory of their own.
        if isinstance(result, Tensor) and 0 not in result.stride():
            self.elements = max(self.elements, result.numel())
        return result


def boxes_on_a_grid(count: int, grid: float = 16.0) -> Tensor:
    """Boxes with few distinct corners, so that equal overlaps are common."""
    low = (torch.rand(count, 2) * 20).floor()
    return torch.cat([low, low + 1 + (torch.rand(count, 2) * 6).floor()], dim=1) * grid


def targets_of(boxes: list[Tensor]):
    return pad_targets(boxes, [torch.arange(len(b)) for b in boxes])


def reference(boxes: Tensor, anchors: Tensor, thresholds: tuple[float, float, bool]) -> Tensor:
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1)
    return Matcher(*thresholds)(box_iou(boxes, anchors))


@pytest.mark.parametrize("match", PATHS)
@pytest.mark.parametrize("thresholds", [(0.5, 0.4, True), (0.7, 0.3, True), (0.5, 0.5, False)])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("ties", [True, False])
def test_matches_of_shared_anchors_equal_torchvision(counts, thresholds, ties, match) -> None:
    torch.manual_seed(sum(counts))
    scale = 1.0 if ties else 1.0 + torch.rand(1).item()
    boxes = [boxes_on_a_grid(count) for count in counts]
    anchors = boxes_on_a_grid(2000) * scale
    matches = match(anchors, targets_of(boxes), *thresholds)
    assert matches.dtype == torch.int64
    for image, image_boxes in enumerate(boxes):
        assert torch.equal(matches[image], reference(image_boxes, anchors, thresholds))


@pytest.mark.parametrize("match", PATHS)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_matches_of_each_images_own_boxes_equal_torchvision(counts, match) -> None:
    torch.manual_seed(1)
    boxes = [boxes_on_a_grid(count) for count in counts]
    proposals = torch.stack([boxes_on_a_grid(500) for _ in counts])
    matches = match(proposals, targets_of(boxes), 0.5, 0.5, False)
    for image, image_boxes in enumerate(boxes):
        expected = reference(image_boxes, proposals[image], (0.5, 0.5, False))
        assert torch.equal(matches[image], expected)


@pytest.mark.parametrize("thresholds", [(0.5, 0.4, True), (0.5, 0.5, False)])
@pytest.mark.parametrize("match", PATHS)
def test_what_has_no_area_matches_nothing_and_disturbs_nothing(match, thresholds) -> None:
    torch.manual_seed(1)
    boxes, anchors = boxes_on_a_grid(5), boxes_on_a_grid(200)
    point = torch.tensor([[32.0, 32.0, 32.0, 32.0]])
    with_points = torch.cat([boxes, point]), torch.cat([anchors, point, point + 7])
    matches = match(with_points[1], targets_of([with_points[0]]), *thresholds)[0]
    assert torch.equal(matches[:-2], reference(boxes, anchors, thresholds))
    assert matches[-2:].tolist() == [-1, -1]


@pytest.mark.parametrize("match", PATHS)
def test_equal_boxes_match_the_first_of_them(match) -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    matches = match(box, targets_of([box.repeat(5, 1)]), 0.5, 0.4, True)
    assert matches.tolist() == [[0]]


@pytest.mark.parametrize("match", PATHS)
def test_every_anchor_that_is_the_best_of_a_box_is_matched_however_low_its_iou(match) -> None:
    anchors = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [10.0, 0.0, 20.0, 10.0], [50.0, 50.0, 60.0, 60.0]]
    )
    targets = targets_of([torch.tensor([[8.0, 0.0, 12.0, 10.0]])])
    assert match(anchors, targets, 0.5, 0.4, True).tolist() == [[0, 0, -1]]
    assert match(anchors, targets, 0.5, 0.4, False).tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize("match", PATHS)
def test_a_box_that_no_anchor_touches_makes_none_positive(match) -> None:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    between, touching = torch.tensor([[20.0, 20.0, 40.0, 40.0]]), torch.tensor([[0.0, 0, 3, 3]])
    targets = targets_of([between, torch.cat([between, touching])])
    assert match(anchors, targets, 0.5, 0.4, True).tolist() == [[-1, -1], [1, -1]]


@pytest.mark.parametrize("match", PATHS)
def test_an_iou_at_a_threshold_counts_as_above_it(match) -> None:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.0], [0.0, 0.0, 10.0, 3.0]])
    targets = targets_of([torch.tensor([[0.0, 0.0, 10.0, 10.0]])])
    assert match(anchors, targets, 0.5, 0.4, False).tolist() == [[0, -2, -1]]


@pytest.mark.parametrize("match", PATHS)
@pytest.mark.parametrize("elements", [1, 700, 5000, 10**7])
def test_the_size_of_the_chunks_changes_nothing(elements, match, monkeypatch) -> None:
    torch.manual_seed(2)
    targets = targets_of([boxes_on_a_grid(count) for count in (5, 0, 30, 1)])
    anchors = boxes_on_a_grid(300)
    expected = match(anchors, targets, 0.5, 0.4, True)
    for room in (matching, host_matching):
        monkeypatch.setattr(room, "CHUNK_ELEMENTS", elements)
    assert torch.equal(match(anchors, targets, 0.5, 0.4, True), expected)


@pytest.mark.parametrize("match", PATHS)
def test_matching_holds_a_bounded_number_of_overlaps(match, monkeypatch) -> None:
    for room in (matching, host_matching):
        monkeypatch.setattr(room, "CHUNK_ELEMENTS", 1 << 19)
    targets = targets_of([boxes_on_a_grid(count) for count in (200, 3, 0, 150)])
    with LargestTensor() as recorder:
        match(boxes_on_a_grid(20_000), targets, 0.5, 0.4, True)
    assert recorder.elements <= 1 << 19


def test_matching_and_sampling_never_wait_for_the_device() -> None:
    targets = targets_of([boxes_on_a_grid(count) for count in (200, 3, 0, 150)])
    anchors = boxes_on_a_grid(20_000)
    with LargestTensor() as recorder:
        matches = match_batch(anchors, targets, 0.5, 0.4, True)
        samples = BalancedSampler(256, 0.5)(matches >= 0, matches == -1)
        gather_matched(targets.boxes, matches.gather(1, samples.indices))
    assert recorder.waits == []


def test_gathering_reads_the_matched_box_and_stays_finite_without_any() -> None:
    boxes = [boxes_on_a_grid(3), boxes_on_a_grid(1)]
    targets = targets_of(boxes)
    matches = torch.tensor([[2, 0, -1, -2], [0, -1, 0, 0]])
    gathered = gather_matched(targets.boxes, matches)
    assert torch.equal(gathered[0, :2], boxes[0][[2, 0]])
    assert torch.equal(gathered[1, [0, 2, 3]], boxes[1][[0, 0, 0]])
    assert gather_matched(targets.labels, matches)[0, :2].tolist() == [2, 0]
    empty = targets_of([torch.zeros(0, 4)])
    assert gather_matched(empty.boxes, matches[:1]).isfinite().all()
    assert gather_matched(empty.labels, matches[:1]).shape == (1, 4)


@pytest.mark.parametrize("size", [1, 7, 8, 64, 10**6])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_as_many_are_sampled_as_torchvision_samples(size, fraction) -> None:
    torch.manual_seed(3)
    labels = torch.randint(-1, 2, (4, 100))
    labels[1] = 0
    labels[2] = 1
    labels[3] = -1
    samples = BalancedSampler(size, fraction)(labels == 1, labels == 0)
    positive, negative = BalancedPositiveNegativeSampler(size, fraction)(list(labels))
    for image in range(4):
        indices = samples.indices[image]
        drawn = indices[samples.valid[image]]
        assert len(drawn.unique()) == len(drawn)
        assert samples.positive[image].sum() == positive[image].sum()
        assert samples.valid[image].sum() == positive[image].sum() + negative[image].sum()
        assert (labels[image, indices[samples.positive[image]]] == 1).all()
        negatives = samples.valid[image] & ~samples.positive[image]
        assert (labels[image, indices[negatives]] == 0).all()


def test_every_candidate_is_as_likely_as_the_others() -> None:
    torch.manual_seed(4)
    positive = torch.zeros(4000, 30, dtype=torch.bool)
    positive[:, :10] = True
    samples = BalancedSampler(8, 0.5)(positive, ~positive)
    drawn = torch.zeros(4000, 30).scatter(1, samples.indices, samples.valid.float()).mean(dim=0)
    # 4 of 10 positives and 4 of 20 negatives; the bounds are five standard deviations.
    assert drawn[:10].sub(0.4).abs().max() < 0.039
    assert drawn[10:].sub(0.2).abs().max() < 0.032


def test_the_same_seed_draws_the_same_samples() -> None:
    positive = torch.rand(2, 50) < 0.3
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(BalancedSampler(16, 0.5)(positive, ~positive).indices)
    assert torch.equal(*draws)
