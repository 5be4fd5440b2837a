"""The box head's linear layers through oneDNN: ``F.linear``'s numbers and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detector import box_head
from detector.box_head import BoxHead
from detector.fast import onednn_linear as room

needs_onednn = pytest.mark.skipif(not room.is_available(), reason="this PyTorch lacks oneDNN")


@needs_onednn
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 3, 2), (7, 40, 1), (130, 300, 65)])
def test_values_and_gradients_are_those_of_the_plain_layer(
    rows: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)]
    scale = torch.randn(rows, outputs)
    results = []
    for linear in (F.linear, room.onednn_linear):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output = linear(*leaves)
        (output * scale).sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_a_transposed_input_is_multiplied_as_it_stands() -> None:
    x = torch.randn(40, 7).t()
    weight, bias = torch.randn(40, 5).t(), torch.randn(5)
    fast = room.onednn_linear(x, weight, bias)
    torch.testing.assert_close(fast, F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@needs_onednn
def test_the_box_head_gives_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, x = BoxHead(4 * 9, 16), torch.randn(5, 4, 3, 3)
    monkeypatch.setattr(room, "_is_amd", lambda: True)
    assert room.pays_here(x)
    fast = head(x)
    monkeypatch.setattr(box_head, "pays_here", lambda _: False)
    torch.testing.assert_close(head(x), fast, rtol=1e-4, atol=1e-5)


def test_without_rows_in_other_types_and_under_autocast_the_plain_layer_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_is_amd", lambda: True)
    assert not room.pays_here(torch.zeros(0, 8))
    assert not room.pays_here(torch.zeros(2, 8, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert not room.pays_here(torch.zeros(2, 8))
    assert BoxHead(8, 4)(torch.zeros(0, 2, 2, 2)).shape == (0, 4)
