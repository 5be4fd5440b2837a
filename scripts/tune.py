"""Find a learning rate, or the largest batch that fits.

    python scripts/tune.py lr --config configs/bccd/retinanet.yaml
    python scripts/tune.py batch --config configs/voc/retinanet_r50.yaml train.amp=bf16

`lr` trains with a growing learning rate and plots the loss over it: train.lr is good where the loss
falls fastest, and too large where it rises. `batch` trains on ever larger batches of images of the
largest size until memory runs out, and reports the speed of each. Neither creates a run.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.process.standard_output import is_watched, status_of_tool, tool
from engine.process.threads import limit_spinning

limit_spinning()  # torch reads it when it is imported

# ruff: noqa: E402
import argparse
import json
import math
from collections.abc import Sequence

from tqdm import tqdm

from data.build import build_annotations
from data.errors import InputError
from engine.config import Config, load_config
from engine.process.distributed import start_ranks
from scripts.figures import check_figure, save_figure
from scripts.tables import format_table
from scripts.tuning.batch_size import (
    Trial,
    attempt_on_cpu,
    attempt_on_gpu,
    available_gib,
    largest_batch,
)
from scripts.tuning.learning_rate import FEWEST, draw, range_test

SHARE = 0.9  # of the available memory: leaves room for the loader and others


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)
    return (tune_lr if options.what == "lr" else tune_batch)(config, options)


def tune_lr(config: Config, options: argparse.Namespace) -> int:
    """Run the learning-rate range test; return the exit code."""
    if not 0 < options.lowest < options.highest < math.inf:
        raise InputError("--lowest must be above 0 and below --highest")
    if options.iterations < FEWEST:
        raise InputError(f"--iterations: {options.iterations} is too few; use at least {FEWEST}")
    picture = options.output or (None if options.json else Path("lr.png"))
    if picture is not None:
        check_figure(picture)
    with start_ranks(config.train.device) as ranks:
        bounds, show = (options.lowest, options.highest), is_watched()
        test = range_test(config, ranks, *bounds, options.iterations, show)
    if options.json:
        print(json.dumps(test.as_dict()))
    else:
        how = "diverged" if test.diverged else "did not diverge"
        print(
            f"{len(test.losses)} iterations, train.lr from {test.rates[0]:.2g} to "
            f"{test.rates[-1]:.2g}; the loss {how}\n"
            f"the loss falls fastest at {test.suggested:.2g} and is lowest at {test.largest:.2g}\n"
            f"try train.lr={test.suggested:.1e} (now {config.train.lr:.1e})"
        )
    if picture is not None:
        save_figure(draw(test), picture)
        if not options.json:
            print(f"written: {picture}")
    return 0


def tune_batch(config: Config, options: argparse.Namespace) -> int:
    """Find the largest batch; return the exit code, 1 if not even one image fits."""
    if options.memory is not None and not options.memory > 0:
        raise InputError("--memory must be above 0")
    annotations = build_annotations(config.data, config.data.train, check_images=False)
    with start_ranks(config.train.device) as ranks:
        on_gpu = ranks.device.type == "cuda"
        limit = options.memory or SHARE * available_gib(ranks.device)
        attempt = (
            attempt_on_gpu(config, annotations, ranks.device)
            if on_gpu
            else attempt_on_cpu(config, annotations)
        )
        hidden = not is_watched()
        with tqdm(desc="batch", unit="trial", leave=False, disable=hidden) as bar:

            def report(trial: Trial) -> None:
                bar.set_postfix(images=trial.batch)
                bar.update()

            trials = largest_batch(attempt, limit, report)
    fitting = [trial for trial in trials if trial.gib is not None]
    largest = max((trial.batch for trial in fitting), default=None)
    fastest = max(fitting, key=lambda trial: trial.images_per_second or 0, default=None)
    if options.json:
        result = {
            "largest": largest,
            "fastest": fastest.batch if fastest else None,
            "limit_gib": limit,
            "trials": [trial.as_dict() for trial in trials],
        }
        print(json.dumps(result))
        return int(largest is None)
    rows = [
        [trial.batch, trial.gib, trial.images_per_second]
        for trial in sorted(trials, key=lambda trial: trial.batch)
    ]
    print(format_table(["batch", "GiB", "images/s"], rows))
    if largest is None or fastest is None:
        print(f"not even one image fits into {limit:.3g} GiB: lower data.image_size")
        return 1
    print(
        f"\nlargest within {limit:.3g} GiB: data.batch_size={largest}; fastest: {fastest.batch} "
        f"({fastest.images_per_second:.1f} images/s)"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("lr", "batch"), help="what to find")
    parser.add_argument("--config", required=True, help="a YAML file, see configs/")
    parser.add_argument("--lowest", type=float, default=1e-6, help="lr: first rate (1e-6)")
    parser.add_argument("--highest", type=float, default=1.0, help="lr: last rate (1)")
    parser.add_argument(
        "--iterations", type=int, default=100, help="lr: iterations of the test (100)"
    )
    parser.add_argument("--output", type=Path, help="lr: output image (lr.png)")
    parser.add_argument(
        "--memory", type=float, help="batch: memory limit in GiB (90 %% of the available memory)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="config overrides")
    return parser


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
