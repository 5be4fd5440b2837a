"""Laws of the self-balancing of Rank & Sort Loss."""

from __future__ import annotations

import torch

from losses import SelfBalancing

PAIR = {"head": ("cls", "box")}


def test_the_box_loss_takes_the_value_of_the_classification_loss() -> None:
    balancing = SelfBalancing(PAIR)
    for cls, box in ((6.0, 2.0), (0.5, 4.0), (1e-3, 1e3)):
        weighted = balancing({"cls": torch.tensor(cls), "box": torch.tensor(box)})
        weights = balancing.applied_weights()
        assert weights["cls"] == 1
        torch.testing.assert_close(weights["box"], torch.tensor(cls / box))
        torch.testing.assert_close(weighted["box"], weighted["cls"])


def test_the_weight_is_a_constant_for_the_gradient() -> None:
    parameter = torch.tensor(2.0, requires_grad=True)
    weighted = SelfBalancing(PAIR)({"cls": parameter**3, "box": 4 * parameter})
    gradients = [torch.autograd.grad(loss, parameter)[0] for loss in weighted.values()]
    assert gradients == [12.0, 4.0]  # 3 p², and 4 times 8 / 8


def test_a_batch_without_objects_leaves_the_weight_of_the_call_before() -> None:
    balancing = SelfBalancing(PAIR)
    balancing({"cls": torch.tensor(6.0), "box": torch.tensor(2.0)})
    balancing({"cls": torch.tensor(5.0), "box": torch.tensor(0.0)})
    assert balancing.applied_weights()["box"] == 3
