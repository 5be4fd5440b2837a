"""Analyze the errors of a detector, or compare two.

    python scripts/analyze.py runs/my_run/best.pt
    python scripts/analyze.py runs/fixed/last.pt runs/alwa/last.pt --output comparison.html
    python scripts/analyze.py --config configs/bccd/retinanet.yaml found.json --json

A checkpoint is run over the split; COCO results JSON or a folder of comp4 files is read, and needs
--config for the data it belongs to. Scores, precision-recall curves of each class, the confusion
matrix, AP by size, calibration, the six TIDE error types and the worst images go to one
self-contained HTML file. With a second checkpoint or file of detections everything is shown side by
side, and a paired bootstrap tests the difference in mAP. Boxes are analyzed, masks only scored.
Config overrides (data.root=... train.device=cpu) may be given among the files.
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
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from data.annotations import Annotations
from data.build import build_annotations, known_classes
from data.errors import InputError
from data.image_files import open_images
from data.images import DamagedImageError
from data.loading import build_eval_loader
from data.target import Batch
from engine.config import Config, load_config, split_words
from engine.evaluation.coco_engines import Engine, check_engine
from engine.evaluation.detections import Detections
from engine.evaluation.evaluator import detect, read_detections, score
from engine.evaluation.flip_tta import with_flip
from engine.process.atomic_file import write_atomically
from engine.process.outputs import check_outputs
from engine.trained import Trained, load_trained
from scripts.analysis.bootstrap import compare
from scripts.analysis.confusion import confusion_matrix
from scripts.analysis.precision import are_probabilities, calibration, class_curves
from scripts.analysis.report import build_report, percent
from scripts.analysis.sizes import ap_by_size
from scripts.analysis.tide import TYPES, judge_errors, tide
from scripts.analysis.worst import count_faults, draw_faults
from scripts.analysis.worst_section import BadImage
from scripts.number_types import at_least, score_threshold
from scripts.tables import format_table

IOU = 0.5


@dataclass(frozen=True)
class Run:
    """The detections of one detector in the split."""

    name: str
    detections: Detections


@dataclass(frozen=True)
class Split:
    """The images and their ground truth."""

    config: Config
    annotations: Annotations


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    files, overrides = split_words(options.words)
    if not 1 <= len(files) <= 2:
        raise InputError("give one or two checkpoints or files of detections")
    split, runs = load_runs(files, overrides, options)
    result = analyze(split, runs, options)
    # Print even if the report cannot be written, and write it even if the pipe is closed.
    try:
        print(json.dumps(result, allow_nan=False) if options.json else format_result(result))
    finally:
        if not options.no_report:
            worst = worst_images(split, runs, options)
            write_atomically(options.output, build_report(result, worst).encode())
            if not options.json:
                print(f"\nreport: {options.output}")
    return 0


def load_runs(
    files: Sequence[str], overrides: Sequence[str], options: argparse.Namespace
) -> tuple[Split, list[Run]]:
    """Open the split and get the detections of each run in it."""
    trained = [load_trained(file, overrides) if is_checkpoint(file) else None for file in files]
    split = open_split(next(filter(None, trained), None), overrides, options)
    if not options.no_report:
        read = [*files, options.config, *split.annotations.coco_files]
        root, pictures = split.config.data.root, split.annotations.files
        check_outputs([options.output], read, root, pictures)
    runs = []
    for file, name, detector in zip(files, run_names(files), trained, strict=True):
        if detector is None:
            detections = read_detections(file, split.annotations)
        else:
            if detector.classes != split.annotations.classes:
                raise InputError(
                    f"{file}: was trained on {', '.join(detector.classes)}, not on "
                    f"{', '.join(split.annotations.classes)}; compare runs with the same classes"
                )
            detections = detections_of(detector, split, name)
        runs.append(Run(name, detections))
        if not are_probabilities(detections.score):
            print(
                f"analyze.py: {file}: scores range from {detections.score.min():.3g} to "
                f"{detections.score.max():.3g}, so they are not probabilities: calibration is "
                f"skipped, and --threshold {options.threshold:g} is applied to them as they are",
                file=sys.stderr,
            )
    return split, runs


def is_checkpoint(file: str) -> bool:
    """Return whether a path is a checkpoint: neither a .json file nor a folder (of comp4 files)."""
    return not Path(file).is_dir() and Path(file).suffix.lower() != ".json"


def run_names(files: Sequence[str]) -> list[str]:
    """Return the runs' names: the folder of a checkpoint, the name of a file of detections."""
    names = [
        path.parent.name if is_checkpoint(str(path)) else path.stem
        for path in (Path(file).resolve() for file in files)
    ]
    return names if len(set(names)) == len(names) else list(files)


def open_split(
    trained: Trained | None, overrides: Sequence[str], options: argparse.Namespace
) -> Split:
    """Open the split of the config file, or else of the first checkpoint's config.

    Raises:
        InputError: there is neither config nor checkpoint, or its data or IoU cannot be used.
    """
    if options.config is not None:
        config = load_config(options.config, overrides)
    elif trained is not None:
        config = trained.config
    else:
        raise InputError(
            "--config: required for files of detections; give the YAML file of their data"
        )
    check_engine(config.evaluate.engine)
    if config.evaluate.iou != IOU:
        raise InputError(
            f"evaluate.iou: {config.evaluate.iou:g}, but curves, errors and the bootstrap use IoU "
            f"{IOU:g}; add evaluate.iou={IOU:g}"
        )
    name = config.data.split(options.split)
    classes = trained.classes if trained is not None else known_classes(config.data)
    return Split(config, build_annotations(config.data, name, classes, check_images=False))


def detections_of(trained: Trained, split: Split, name: str) -> Detections:
    """Run a detector over the split's images, at its own training size."""
    own = trained.config.data
    data = split.config.data.model_copy(
        update={"image_size": own.image_size, "batch_size": own.batch_size}
    )
    loader = build_eval_loader(data, split.annotations, rank=0, world_size=1)

    def batches() -> Iterator[Batch]:
        hidden = not is_watched()
        yield from tqdm(loader, name, unit="batch", delay=2, leave=False, disable=hidden)

    with closing(loader):
        return detect(
            with_flip(trained.detector, trained.config),
            batches(),
            split.annotations,
            trained.device,
            trained.config.train.amp,
        )


def analyze(split: Split, runs: Sequence[Run], options: argparse.Namespace) -> dict[str, Any]:
    """Compute all numbers that ``--json`` prints and the report shows."""
    annotations = split.annotations
    counted = annotations.counted
    result: dict[str, Any] = {
        "data": f"{annotations.source}",
        "images": len(annotations),
        "objects": int(counted.sum()),
        "classes": list(annotations.classes),
        "iou": IOU,
        "score_threshold": options.threshold,
        "runs": [
            analyze_run(run, annotations, options.threshold, split.config.evaluate.engine)
            for run in runs
        ],
    }
    if len(runs) == 2:
        first, second = (run.detections for run in runs)
        comparison = compare(
            first, second, annotations, options.resamples, options.seed, is_watched()
        )
        result["comparison"] = {**comparison, "resamples": options.resamples}
    return result


def analyze_run(
    run: Run, annotations: Annotations, threshold: float, engine: Engine
) -> dict[str, Any]:
    """Compute the numbers of one run; COCO's scores by ``engine``."""
    verdicts = judge_errors(run.detections, annotations, IOU)
    return {
        "name": run.name,
        "detections": len(run.detections),
        "scores": score(run.detections, annotations, IOU, engine),
        "tide": tide(run.detections, annotations, verdicts),
        "classes": class_curves(run.detections, annotations, IOU),
        "confusion": confusion_matrix(run.detections, annotations, IOU, threshold).tolist(),
        "sizes": ap_by_size(run.detections, annotations, engine, is_watched()),
        "calibration": calibration(run.detections, annotations, IOU),
    }


def worst_images(split: Split, runs: Sequence[Run], options: argparse.Namespace) -> list[BadImage]:
    """Draw the first run's images with most errors, for every run; none if files are missing."""
    annotations, threshold = split.annotations, options.threshold
    verdicts = [judge_errors(run.detections, annotations, IOU) for run in runs]
    faults = count_faults(runs[0].detections, annotations, verdicts[0], threshold)
    images = open_images(split.config.data, annotations, in_memory=False)
    worst = []
    for row in faults.worst(options.worst):
        try:
            image = images.read(row)
        except DamagedImageError:
            continue
        except InputError as error:
            print(f"analyze.py: worst images skipped: {error}", file=sys.stderr)
            return []
        pictures = [
            draw_faults(image, row, annotations, run.detections, each, threshold)
            for run, each in zip(runs, verdicts, strict=True)
        ]
        worst.append(BadImage(str(annotations.names[row]), pictures))
    return worst


def format_result(result: dict[str, Any]) -> str:
    """Format the main numbers for a terminal."""
    runs = result["runs"]
    names = [run["name"] for run in runs]
    scores = [
        ["VOC mAP", *(percent(run["scores"]["voc"]["area"]["mAP"]) for run in runs)],
        *(
            [f"COCO {name}", *(percent(run["scores"]["coco"]["bbox"][name]) for run in runs)]
            for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")
        ),
        ["calibration error", *(percent(run["calibration"]["error"]) for run in runs)],
    ]
    errors = [
        [kind]
        + [f"{100 * run['tide']['cost'][kind]:.1f} ({run['tide']['count'][kind]})" for run in runs]
        for kind in TYPES
    ]
    head = f"{result['data']}: {result['images']} images, {result['objects']} objects"
    parts = [
        head,
        format_table(["in percent", *names], scores),
        format_table(["TIDE: AP lost (errors)", *names], errors),
    ]
    if "comparison" in result:
        parts.append(_format_comparison(result["comparison"]))
    return "\n\n".join(parts)


def _format_comparison(comparison: dict[str, Any]) -> str:
    lines = []
    for name, title in (("mAP50", "mAP at IoU 0.5"), ("mAP50_95", "mAP over IoU 0.5 to 0.95")):
        each = comparison[name]
        numbers = [100 * each[key] for key in ("difference", "low", "high")]
        lines.append(
            f"{title}: second - first = {numbers[0]:+.1f} points, 95 % interval {numbers[1]:+.1f} "
            f"to {numbers[2]:+.1f} over {comparison['resamples']} bootstrap resamples, "
            f"p = {each['p']:.3g}"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="CHECKPOINT|DETECTIONS",
        help="one or two: a checkpoint, a COCO results .json, a folder of comp4 files",
    )
    parser.add_argument("--config", help="YAML file of the data that the detections belong to")
    parser.add_argument("--split", default="val", help="train, val, or a split of the data (val)")
    parser.add_argument(
        "--output", type=Path, default=Path("analysis.html"), help="HTML report (analysis.html)"
    )
    parser.add_argument(
        "--threshold",
        type=score_threshold,
        default=0.5,
        help="minimum score for the confusion matrix and the drawn images (0.5)",
    )
    parser.add_argument(
        "--worst", type=at_least(0), default=12, help="number of worst images to draw (12)"
    )
    parser.add_argument(
        "--resamples", type=at_least(1), default=1000, help="bootstrap resamples (1000)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the bootstrap (0)")
    parser.add_argument("--no-report", action="store_true", help="write no HTML")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
