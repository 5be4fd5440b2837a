"""VOC mAP against the plain algorithm, and COCO AP by each engine."""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import find_spec

import torch

from engine.evaluation.coco_ap import coco_scores
from engine.evaluation.coco_engines import MODULES, Engine
from engine.evaluation.voc_map import voc_scores
from scripts.benchmarks.machine import describe_machine
from scripts.benchmarks.random_split import random_annotations, random_detections
from scripts.benchmarks.report import Report, Row
from scripts.benchmarks.timing import alternate, worst_of
from scripts.benchmarks.voc_eval import by_image, voc_eval

CPU = torch.device("cpu")
LARGEST_DIFFERENCE = 1e-10
FAST: tuple[Engine, ...] = ("faster-coco-eval", "hotcoco")


def run_voc(options: argparse.Namespace) -> Report:
    """Time both forms of our mAP, and one form of the plain algorithm, on the same arrays."""
    annotations = random_annotations(options.images, options.classes, options.objects)
    detections = random_detections(annotations, options.detections)
    objects = by_image(annotations)
    report = Report(_title("VOC mAP", options), describe_machine(CPU, ("numpy",)))
    ours = voc_scores(detections, annotations)["area"]["AP"]
    theirs = voc_eval(detections, objects, annotations.classes)
    worst = worst_of(abs(ours[name] - theirs[name]) for name in theirs)
    _require(worst)
    report.checks.append(f"largest difference of a class's AP: {worst:.1g}")
    seconds = alternate(
        {
            "ours": lambda: voc_scores(detections, annotations),
            "theirs": lambda: voc_eval(detections, objects, annotations.classes),
        },
        options.repeats,
        CPU,
    )
    report.rows.append(Row("VOC mAP", seconds["ours"], seconds["theirs"]))
    return report


def run_coco(options: argparse.Namespace) -> Report:
    """Time our scores through each engine and through pycocotools, on the same arrays."""
    annotations = random_annotations(options.images, options.classes, options.objects)
    detections = random_detections(annotations, options.detections)
    packages = ("numpy", "pycocotools", *FAST)
    report = Report(_title("COCO box AP", options), describe_machine(CPU, packages))
    expected = coco_scores(detections, annotations)
    engines = [engine for engine in FAST if find_spec(MODULES[engine])]
    for engine in engines:
        scores = coco_scores(detections, annotations, engine=engine)
        worst = worst_of(_difference(scores[name], expected[name]) for name in expected)
        _require(worst)
        report.checks.append(f"{engine}: largest difference of the twelve numbers {worst:.1g}")
    seconds = alternate(
        {
            engine: partial(coco_scores, detections, annotations, "bbox", engine)
            for engine in ("pycocotools", *engines)
        },
        options.repeats,
        CPU,
        warm_up=0,
    )
    for engine in engines:
        row = Row(f"{engine} / pycocotools", seconds[engine], seconds["pycocotools"])
        report.rows.append(row)
    return report


def _title(what: str, options: argparse.Namespace) -> str:
    return (
        f"{what}: {options.images} images, {options.classes} classes, {options.objects} objects, "
        f"{options.detections} detections"
    )


def _difference(score: float | None, expected: float | None) -> float:
    if score is None or expected is None:
        return 0.0 if score is expected else float("inf")
    return abs(score - expected)


def _require(worst: float) -> None:
    if not worst <= LARGEST_DIFFERENCE:
        raise SystemExit(f"scores differ by {worst:.1g}: nothing was timed")
