"""What of recorded passes can be seen without a GPU; scripts/check_gpu.py compares them on one."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from data.target import Targets, pad_targets
from detector.build import build_detector
from detector.config import DetectorConfig
from detector.fast.cuda_graphs import FIRST_RECORDED, CUDAGraphs, record_both_ways
from detector.rcnn import FasterRCNN
from detector.retinanet import RetinaNet
from losses.config import LossConfig

SIZE = (2, 3, 96, 128)


def build(kind: str) -> RetinaNet | FasterRCNN:
    torch.manual_seed(0)
    options = {"type": kind, "backbone": "resnet18", "weights": "none", "fpn_channels": 16}
    detector = build_detector(DetectorConfig.model_validate(options), LossConfig(), 3)
    return detector.to("meta")


def make_targets() -> Targets:
    boxes = torch.tensor([[4.0, 4.0, 40.0, 44.0], [10.0, 8.0, 90.0, 90.0], [60.0, 60.0, 70, 72]])
    return pad_targets([boxes, torch.zeros(0, 4)], [torch.tensor([0, 1, 2]), torch.zeros(0)])


def test_what_retinanet_records_looks_at_no_value() -> None:
    """On PyTorch's device without values, where a look at one raises; R-CNNs are in test_slots."""
    detector = build("retinanet")
    targets = make_targets().with_few_shapes().to(torch.device("meta"))
    images = torch.empty(SIZE, device="meta")
    losses = detector._pass(images, targets.boxes, targets.labels)
    assert [loss.shape for loss in losses] == [(), ()]
    torch.stack(losses).sum().backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
    with torch.no_grad():
        boxes, scores, labels = detector.eval()._pass(images)
    assert boxes.shape[:2] == scores.shape == labels.shape


def test_padding_to_few_shapes_adds_no_object() -> None:
    targets = make_targets()
    padded = targets.with_few_shapes()
    assert padded.labels.shape == (2, 8)
    assert padded.counts == targets.counts
    assert torch.equal(padded.boxes[:, :3], targets.boxes)
    assert (padded.labels[:, 3:] == -1).all()
    assert (padded.boxes[:, 3:] == 0).all()


def test_a_pass_is_not_recorded_where_gradients_are_kept_or_not_asked_for() -> None:
    layer = torch.nn.Linear(2, 1)
    calls: list[Tensor] = []

    def function(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(x)
        return (layer(x).sum(),)

    graphs = CUDAGraphs(layer, function)  # a layer in training mode
    x = torch.ones(3, 2)
    with torch.no_grad():
        for _ in range(FIRST_RECORDED):
            graphs(x)
    graphs(x)[0].backward()
    for _ in range(FIRST_RECORDED):  # the gradient of the first pass is still there
        graphs(x)[0].backward()
    assert len(calls) == 2 * FIRST_RECORDED + 1
    assert graphs.recorded == 0


def test_a_pass_whose_norms_talk_to_other_ranks_is_not_recorded() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.SyncBatchNorm(1))
    graphs = CUDAGraphs(module, lambda x: (x,))
    for _ in range(FIRST_RECORDED):  # without a GPU a recording would raise
        graphs(torch.ones(1))
    assert graphs.recorded == 0


@pytest.mark.parametrize("asks", [True, False])
def test_other_threads_do_not_end_a_recording(asks, monkeypatch) -> None:
    """Whether PyTorch's function asks for the mode or, as until 2.11, does not; on one stream."""
    modes = []

    def graph(_: object, stream: object = None, capture_error_mode: str = "global") -> None:
        modes.append((stream, capture_error_mode))

    def asking(function, *_, pool, capture_error_mode="global", **__):
        torch.cuda.graph(pool, stream=object(), capture_error_mode=capture_error_mode)
        return function

    def silent(function, *_, pool, **__):
        torch.cuda.graph(pool)
        return function

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", asking if asks else silent)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return (x,)

    assert record_both_ways(function, (torch.ones(1),), memory=None) is function
    assert modes == [(None, "thread_local")]
    assert torch.cuda.graph is graph


class Replay(torch.autograd.Function):
    """As a recorded pass comes back: one node, whatever it computes."""

    @staticmethod
    def forward(_, x: Tensor, weight: Tensor) -> Tensor:
        return (x * weight).sum()

    @staticmethod
    def backward(_, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient.expand(3)


@pytest.fixture
def replayed(monkeypatch) -> tuple[CUDAGraphs, list[str]]:
    """A module with one weight, whose passes are replayed on a CPU; who ran: written or replay."""
    module, ran = torch.nn.ParameterList([torch.ones(3)]), []

    def written(x: Tensor) -> tuple[Tensor, ...]:
        ran.append("written")
        return ((x * module[0]).sum(),)

    def record(*_: object):
        def replay(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            ran.append("replay")
            return (Replay.apply(x, weight),)

        return replay

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(CUDAGraphs, "_record", record)
    graphs = CUDAGraphs(module, written)
    for _ in range(FIRST_RECORDED):
        graphs(torch.ones(3))[0].backward()
        module.zero_grad(set_to_none=True)
    assert ran == ["written"] * (FIRST_RECORDED - 1) + ["replay"]
    ran.clear()
    return graphs, ran


def test_a_second_pass_before_the_first_ones_backward_runs_as_written(replayed) -> None:
    graphs, ran = replayed
    x = torch.ones(3)
    (graphs(x)[0] + graphs(x)[0]).backward()
    assert ran == ["replay", "written"]
    assert torch.equal(graphs.module[0].grad, torch.full((3,), 2.0))
    graphs.module.zero_grad(set_to_none=True)
    graphs(x)  # not differentiated, and given up
    graphs(x)[0].backward()
    assert ran == ["replay", "written", "replay", "replay"]


def test_detection_before_the_backward_pass_of_a_recorded_one_runs_as_written(replayed) -> None:
    graphs, ran = replayed
    (loss,) = graphs(torch.ones(3))
    graphs.module.eval()
    with torch.no_grad():
        for _ in range(FIRST_RECORDED):
            graphs(torch.ones(3))
    assert graphs.recorded == 1
    assert ran == ["replay"] + ["written"] * FIRST_RECORDED
    loss.backward()


def test_a_recorded_pass_is_not_differentiated_twice(replayed) -> None:
    graphs, _ = replayed
    (loss,) = graphs(torch.ones(3))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"detector\.cuda_graphs=false"):
        loss.backward()


def test_what_moved_is_recorded_anew(replayed) -> None:
    graphs, ran = replayed
    graphs.module.double().float()
    graphs(torch.ones(3))
    assert ran == ["written"]


def test_a_forgotten_pass_is_recorded_anew(replayed) -> None:
    graphs, ran = replayed
    graphs.forget()
    assert graphs.recorded == 0
    graphs(torch.ones(3))
    assert ran == ["written"]


def test_detection_recorded_in_inference_mode_serves_without_it(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", MagicMock)
    monkeypatch.setattr(torch.cuda, "graph", MagicMock())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    layer = torch.nn.Linear(2, 1).eval()
    graphs = CUDAGraphs(layer, lambda x: (layer(x),))
    with torch.inference_mode():
        for _ in range(FIRST_RECORDED):
            graphs(torch.ones(2))
    with torch.no_grad():
        graphs(torch.zeros(2))  # writes to the memory of the recording
    assert graphs.recorded == 1


def test_a_copy_of_a_detector_has_no_graphs() -> None:
    detector = build("retinanet")
    assert detector.graphs is not None
    assert copy.deepcopy(detector).graphs is None


def test_a_recorded_pass_can_be_stored(replayed) -> None:
    graphs, _ = replayed
    assert pickle.loads(pickle.dumps(graphs)) is None


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_a_detector_that_nobody_needs_is_freed_at_once(kind) -> None:
    detector = build(kind)
    kept = weakref.ref(detector)
    gc.disable()
    try:
        del detector
        assert kept() is None
    finally:
        gc.enable()
