"""ALWA in your own training loop, with torchvision's RetinaNet on synthetic squares.

    python scripts/examples/alwa_in_your_loop.py

Needs only torch and torchvision besides the package ``losses``; takes seconds on one core.
The lines that ALWA adds to the loop are marked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from losses import ALWA


def train(iterations: int, interval: int, output: Path | None) -> None:
    """A plain loop: model, optimizer, loss, backward, step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    model = RetinaNet(backbone, num_classes=2, min_size=64, max_size=64).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    pair = {"head": ("classification", "bbox_regression")}
    alwa = ALWA(pair, variant=1, interval=interval).to(device)  # ALWA

    for iteration in range(iterations):
        images, targets = draw_squares(iteration, device)
        losses = model(images, targets)
        losses = alwa(losses)  # ALWA: the same names, weighted
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        if alwa.position == 0:  # a window has just closed
            report(iteration + 1, alwa)
    checkpoint = {"model": model.state_dict(), "alwa": alwa.state_dict()}  # ALWA: resumes exactly
    if output is not None:
        torch.save(checkpoint, output)


def draw_squares(seed: int, device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return two noisy 64 x 64 images with a bright square each, and the squares' boxes."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for _ in range(2):
        image = torch.rand(3, 64, 64, generator=generator) / 2
        x, y = torch.randint(0, 40, (2,), generator=generator).tolist()
        image[:, y : y + 24, x : x + 24] = 1.0
        boxes = torch.tensor([[x, y, x + 24, y + 24]], dtype=torch.float32, device=device)
        images.append(image.to(device))
        targets.append({"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64, device=device)})
    return images, targets


def report(iteration: int, alwa: ALWA) -> None:
    """Print the statistics of a window and the new weights, synchronizing once per window."""
    statistics = {
        name: f"{mean.item():.3f} ± {std.item():.3f}"
        for name, (mean, std) in alwa.last_window().items()
    }
    weights = {name: round(weight.item(), 3) for name, weight in alwa.weights().items()}
    print(f"iteration {iteration}: weighted losses {statistics}, next weights {weights}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--interval", type=int, default=10, help="iterations between updates")
    parser.add_argument("--output", type=Path, help="file for a checkpoint")
    arguments = parser.parse_args()
    train(arguments.iterations, arguments.interval, arguments.output)


if __name__ == "__main__":
    main()
