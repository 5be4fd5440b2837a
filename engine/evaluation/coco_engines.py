"""The programs that compute COCO's twelve numbers: the COCO API, and two that are faster.

Each gives the numbers of the COCO API (``tests/engine/test_coco_engines.py``; the last bit of a
mean may differ, by the order of its sum). The fast ones are optional packages, imported on use.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.errors import InputError

Kind = Literal["bbox", "segm"]
Engine = Literal["pycocotools", "faster-coco-eval", "hotcoco"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# The module that each optional engine is imported as; the engine is the name of its package.
MODULES: dict[str, str] = {"faster-coco-eval": "faster_coco_eval", "hotcoco": "hotcoco"}


@dataclass(frozen=True)
class CocoObjects:
    """Ground truth or detections in the COCO API's terms, a column for each of its keys.

    Attributes:
        image_ids: ``(N,)``.
        category_ids: ``(N,)``.
        xywh: ``(N, 4)``: ``bbox``.
        areas: ``(N,)``.
        segmentations: a dict for each as in its JSON; None where boxes are scored.
    """

    image_ids: IntArray
    category_ids: IntArray
    xywh: FloatArray
    areas: FloatArray
    segmentations: list[Any] | None = None

    def entries(self) -> list[dict[str, Any]]:
        """As the API's JSON has them. Ids count from 1: to the API an id of 0 is no match."""
        columns = (self.image_ids, self.category_ids, self.xywh, self.areas)
        entries = [
            {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area}
            for number, (image, category, box, area) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True), start=1
            )
        ]
        if self.segmentations is not None:
            for entry, segmentation in zip(entries, self.segmentations, strict=True):
                entry["segmentation"] = segmentation
        return entries


@dataclass(frozen=True)
class CocoInputs:
    """Everything that the twelve numbers depend on.

    Attributes:
        images: ``{"id", "height", "width"}`` of each.
        category_ids: those that are scored.
        truth: the ground truth.
        crowd: ``(N,)`` bool, which of it are crowd regions.
        found: the detections.
        scores: ``(D,)`` of the detections.
        kind: whether boxes or masks are compared.
    """

    images: list[dict[str, Any]]
    category_ids: IntArray
    truth: CocoObjects
    crowd: npt.NDArray[np.bool_]
    found: CocoObjects
    scores: FloatArray
    kind: Kind

    def categories(self) -> list[dict[str, Any]]:
        return [{"id": number, "name": str(number)} for number in self.category_ids.tolist()]

    def datasets(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Ground truth and detections as datasets in the API's JSON form."""
        truth, found = self.truth.entries(), self.found.entries()
        for entry, crowd in zip(truth, self.crowd.tolist(), strict=True):
            entry["iscrowd"] = int(crowd)
        for entry, score in zip(found, self.scores.tolist(), strict=True):
            entry.update(score=score, iscrowd=0)
        shared = {"images": self.images, "categories": self.categories()}
        return {**shared, "annotations": truth}, {**shared, "annotations": found}


def check_engine(engine: Engine) -> None:
    """Import an engine, so that a missing one is found before anything is computed for it.

    Raises:
        InputError: its package cannot be imported.
    """
    try:
        importlib.import_module(MODULES.get(engine, engine))
    except ImportError as error:
        raise InputError(
            f"evaluate.engine: {engine} cannot be imported ({error}); pip install {engine}, or "
            "choose pycocotools"
        ) from None


def _pycocotools(inputs: CocoInputs) -> FloatArray:
    truth, found = (_in_memory(dataset) for dataset in inputs.datasets())
    return _run(COCOeval(truth, found, inputs.kind))


def _in_memory(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _faster_coco_eval(inputs: CocoInputs) -> FloatArray:
    import faster_coco_eval

    truth, found = (faster_coco_eval.COCO(dataset) for dataset in inputs.datasets())
    return _run(faster_coco_eval.COCOeval_faster(truth, found, inputs.kind, print_function=print))


def _hotcoco(inputs: CocoInputs) -> FloatArray:
    """Columns go in as they are: making a dict of each object would cost more than the scoring."""
    import hotcoco

    columns = inputs.truth
    truth = hotcoco.COCO.from_arrays(
        inputs.images,
        inputs.categories(),
        columns.image_ids,
        columns.category_ids,
        columns.xywh,
        ids=np.arange(1, len(columns.areas) + 1),
        area=columns.areas,
        iscrowd=inputs.crowd.astype(np.int64),
        segmentation=columns.segmentations,
    )
    columns = inputs.found
    rows = np.column_stack([columns.image_ids, columns.xywh, inputs.scores, columns.category_ids])
    found = truth.load_res(rows, segmentation=columns.segmentations)
    # load_res takes areas from the boxes, the inputs have those of masks where masks are scored
    found.update_anns(ids=np.arange(1, len(rows) + 1), area=columns.areas)
    return _run(hotcoco.COCOeval(truth, found, inputs.kind))


def _run(evaluation: Any) -> FloatArray:
    """``(12,)``: the three steps that all engines have."""
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.asarray(evaluation.stats, dtype=np.float64)[:12]


# Inputs -> (12,) in the order of the API's summary, -1 where there is nothing to score.
_STATS: dict[Engine, Callable[[CocoInputs], FloatArray]] = {
    "pycocotools": _pycocotools,
    "faster-coco-eval": _faster_coco_eval,
    "hotcoco": _hotcoco,
}


def compute_stats(inputs: CocoInputs, engine: Engine) -> FloatArray:
    """``(12,)`` in the order of the API's summary, -1 where there is nothing to score.

    The engine is installed: ``check_engine``.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # they print what they do
        return _STATS[engine](inputs)
