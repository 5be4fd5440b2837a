"""Score a checkpoint, or a file of detections.

python evaluate.py CHECKPOINT [--split val] [--output metrics.json] [key.path=value ...]
python evaluate.py --config C --detections PATH [--split val] [--output metrics.json]
torchrun --nproc-per-node=2 evaluate.py CHECKPOINT ... shares the images among processes
"""

from __future__ import annotations

from engine.process.allocator import keep_freed_memory
from engine.process.threads import limit_spinning

limit_spinning()  # torch reads it when it is imported
keep_freed_memory()

# ruff: noqa: E402
import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data.annotations import Annotations
from data.build import build_annotations, known_classes
from data.errors import InputError
from engine.config import load_config, split_words
from engine.evaluation.coco_results import check_ids, write_coco_json
from engine.evaluation.comp4 import check_comp4, write_comp4
from engine.evaluation.detections import Detections
from engine.evaluation.drawing import draw_grid, write_png
from engine.evaluation.evaluator import read_detections, score
from engine.evaluation.scores import format_table, write_metrics
from engine.evaluation.validation import build_validation
from engine.exit_status import exit_status
from engine.precision import check_precision, log_precision
from engine.process.console import start_logging
from engine.process.distributed import leave, start_ranks
from engine.process.outputs import check_outputs
from engine.process.signals import StopRequest
from engine.run_folder import CHECKPOINTS
from engine.trained import load_trained


@dataclass(frozen=True)
class Outputs:
    """The requested output files; None for those not requested."""

    scores: Path | None
    coco_results: str | None
    comp4: str | None
    picture: str | None


def main() -> int:
    """Run the command line; return the exit code."""
    arguments = parse_arguments()
    start_logging(None)

    def command(stop: StopRequest) -> None:
        words = arguments.overrides
        outputs = Outputs(
            arguments.output, arguments.coco_results, arguments.comp4, arguments.picture
        )
        if arguments.detections is not None:
            files = arguments.detections, arguments.config
            score_file(*files, arguments.split, words, outputs, stop)
        else:
            score_checkpoint(arguments.checkpoint, arguments.split, words, outputs, stop)

    return exit_status(command, "data.batch_size or data.image_size")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; exit with an error for no input or both kinds of input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="with --detections: the YAML config of the data")
    parser.add_argument(
        "--detections", help="COCO results JSON, or a folder of comp4_det_<set>_<class>.txt"
    )
    parser.add_argument(
        "--split", default="val", help="train, val (default), or a split of the data"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="file of the scores; default: metrics.json beside the checkpoint",
    )
    parser.add_argument("--coco-results", help="write the detections as COCO results JSON")
    parser.add_argument("--comp4", help="write the detections into a folder of comp4 files")
    parser.add_argument("--picture", help="write a PNG of detections beside the ground truth")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CHECKPOINT | key.path=value",
        help="best.pt or last.pt of a run, and config overrides, in any order",
    )
    arguments = parser.parse_intermixed_args()
    files, arguments.overrides = split_words(arguments.words)
    if len(files) > 1:
        parser.error(f"one checkpoint at a time, not {', '.join(files)}")
    arguments.checkpoint = files[0] if files else None
    if arguments.detections is None and arguments.checkpoint is None:
        parser.error("give a checkpoint, or --config and --detections")
    if (arguments.detections is None) != (arguments.config is None):
        parser.error("--detections and --config must be given together")
    if arguments.detections is not None and (arguments.checkpoint or arguments.picture):
        parser.error("--detections cannot be combined with a checkpoint or --picture")
    return arguments


def score_file(
    path: str,
    config_file: str,
    split: str,
    overrides: Sequence[str],
    outputs: Outputs,
    stop: StopRequest,
) -> None:
    """Score existing detections, which needs neither a model nor the image files."""
    config = load_config(config_file, overrides)
    classes = known_classes(config.data)
    annotations = build_annotations(
        config.data, config.data.split(split), classes, check_images=False
    )
    check_outputs_of(annotations, outputs, [path, config_file], config.data.root)
    stop.check()
    detections = read_detections(path, annotations)
    stop.check()
    scores = score(detections, annotations, config.evaluate.iou, config.evaluate.engine)
    report(scores, detections, annotations, outputs)


def score_checkpoint(
    checkpoint: str, split: str, overrides: Sequence[str], outputs: Outputs, stop: StopRequest
) -> None:
    """Run a checkpoint's detector over a split and score it."""
    beside = [Path(checkpoint).with_name(name) for name in ("metrics.json", *CHECKPOINTS)]
    outputs = replace(outputs, scores=outputs.scores or beside[0])
    trained = load_trained(checkpoint, overrides, torch.device("cpu"))
    config = trained.config
    with start_ranks(config.train.device) as ranks:
        start_logging(None, rank=ranks.rank)
        check_precision(config.train.amp, ranks)
        log_precision(config.train.amp, ranks.device)
        annotations = build_annotations(config.data, config.data.split(split), trained.classes)
        with ranks.main_first():
            if ranks.is_main:
                inputs: list[str | Path] = [checkpoint, *beside[1:]]
                check_outputs_of(annotations, outputs, inputs, config.data.root)
        detector = trained.detector.to(ranks.device)
        validation = build_validation(config, annotations, ranks, stop)
        with closing(validation.loader):
            result = validation.run(detector)
    if result is None:
        return
    detections, scores = result
    report(scores, detections, annotations, outputs)
    if outputs.picture:
        rows, images = validation.examples(count=6)
        if not images:
            raise InputError(f"{outputs.picture}: all images to draw are damaged")
        write_png(outputs.picture, draw_grid(images, rows, annotations, detections))
        print(f"picture: {outputs.picture}")


def check_outputs_of(
    annotations: Annotations, outputs: Outputs, inputs: Sequence[str | Path], data_root: Path
) -> None:
    """Check before the evaluation that the output files can be written and hold the split.

    Raises:
        InputError: a file cannot be written or cannot hold the split, or it would replace an input.
    """
    check_outputs(
        [outputs.scores, outputs.coco_results, outputs.picture],
        [*inputs, *annotations.coco_files],
        data_root,
        annotations.files,
        folders=[outputs.comp4],
    )
    if outputs.coco_results:
        check_ids(outputs.coco_results, annotations)
    if outputs.comp4:
        check_comp4(annotations)


def report(
    scores: dict[str, Any], detections: Detections, annotations: Annotations, outputs: Outputs
) -> None:
    """Print the table; write detections and metrics.json, each even if another one fails."""
    try:
        print(format_table(scores, annotations))
    finally:
        try:
            if outputs.coco_results:
                write_coco_json(outputs.coco_results, detections, annotations)
            if outputs.comp4:
                write_comp4(outputs.comp4, detections, annotations)
        finally:
            if outputs.scores is not None:
                write_metrics(outputs.scores, scores)
                print(f"scores: {outputs.scores}")


if __name__ == "__main__":
    leave(main())
