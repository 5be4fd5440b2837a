"""train N = train k + resume N - k: every detector, rank, worker, precision and place to stop."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from processes import complete, lines_of, small, started, training, wait_until, write_config
from runs import differences, metrics

from engine.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc"),
]
STEPS = 10  # of each of two epochs; ALWA's windows of 3 end at 3, 6 and 9, and over an epoch's end
PLACES = {"within the warm-up": 2, "within an epoch": 7, "at its end": STEPS}


def values_for(
    folder: Path, name: str, kind: str, ranks: int, workers: int, amp: str
) -> dict[str, Any]:
    """Everything that has a state of its own is on: augmentation, momentum, EMA, ALWA's window."""
    return small(
        folder,
        detector={"type": kind},
        data={
            "workers": workers,
            "batch_size": 2 // ranks,
            "augment": [
                {"HorizontalFlip": {"p": 0.5}},
                {"ColorJitter": {"p": 0.5}},
                {"RandomSizedBBoxSafeCrop": {"height": 64, "width": 64, "p": 0.5}},
            ],
            "shapes": {"train_images": 2 * STEPS, "val_images": 4, "image_size": [64, 64]},
        },
        train={"name": name, "amp": amp, "momentum": 0.9, "ema": 0.9, "warmup_iterations": 4},
    )


def cut(folder: Path, values: dict[str, Any], ranks: int, place: int) -> int:
    """Train up to an iteration, or a few more; return which was the last."""
    if place == STEPS:
        first = {**values, "train": {**values["train"], "epochs": 1}}
        complete(write_config(folder, first), ranks=ranks)
    else:
        run = folder / values["train"]["name"]
        with started(*training(write_config(folder, values), ranks=ranks)) as program:
            wait_until(lambda: lines_of(run) >= place, program)
            program.process.send_signal(signal.SIGTERM)
            program.end()
    saved = load_checkpoint(folder / values["train"]["name"] / "last.pt")
    return int(saved["progress"]["step"])


@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn", "mask_rcnn"])
def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(
    kind: str, ranks: int, workers: int, amp: str, tmp_path: Path
) -> None:
    values = values_for(tmp_path, "whole", kind, ranks, workers, amp)
    complete(write_config(tmp_path, values), ranks=ranks)
    whole = load_checkpoint(tmp_path / "whole" / "last.pt")
    for number, (what, place) in enumerate(PLACES.items()):
        values = values_for(tmp_path, f"cut{number}", kind, ranks, workers, amp)
        stopped_at = cut(tmp_path, values, ranks, place)
        assert place <= stopped_at < 2 * STEPS, what
        complete(write_config(tmp_path, values), "--resume", ranks=ranks)
        saved = load_checkpoint(tmp_path / f"cut{number}" / "last.pt")
        assert differences(whole, saved) == ["/config/train/name"], (what, stopped_at)
        assert metrics(tmp_path / "whole") == metrics(tmp_path / f"cut{number}"), (what, stopped_at)
