"""The programs that compute the twelve COCO scores: the COCO API and two faster ones.

Each gives the numbers of the COCO API (``tests/engine/test_coco_engines.py``; the last bit of a
mean may differ, by the order of its sum). The faster ones are optional packages, imported on use.
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

# Module names of the optional engines; the engine is the name of its package.
MODULES: dict[str, str] = {"faster-coco-eval": "faster_coco_eval", "hotcoco": "hotcoco"}


@dataclass(frozen=True)
class CocoObjects:
    """Ground truth or detections in the COCO API's terms, one column per key.

    Attributes:
        image_ids: ``(N,)``.
        category_ids: ``(N,)``.
        xywh: ``(N, 4)``: ``bbox``.
        areas: ``(N,)``.
        segmentations: one dict per object as in COCO JSON; None if boxes are scored.
    """

    image_ids: IntArray
    category_ids: IntArray
    xywh: FloatArray
    areas: FloatArray
    segmentations: list[Any] | None = None

    def entries(self) -> list[dict[str, Any]]:
        """The objects in the API's JSON form. Ids count from 1: the API takes id 0 as no match."""
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
    """The inputs of the twelve COCO scores.

    Attributes:
        images: ``{"id", "height", "width"}`` of each image.
        category_ids: ids of the scored categories.
        truth: the ground truth.
        crowd: ``(N,)`` bool, which ground truth objects are crowd regions.
        found: the detections.
        scores: ``(D,)`` scores of the detections.
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
        """The scored categories in the API's JSON form."""
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
    """Import an engine, so that a missing one is reported before the evaluation.

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
    """Pass columns as they are: a dict per object would cost more than the scoring."""
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
    # load_res takes areas from the boxes; the inputs have those of masks if masks are scored
    found.update_anns(ids=np.arange(1, len(rows) + 1), area=columns.areas)
    return _run(hotcoco.COCOeval(truth, found, inputs.kind))


def _run(evaluation: Any) -> FloatArray:
    """Run the three steps that all engines have -> ``(12,)``."""
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
    """Compute the twelve COCO scores with an installed engine; see ``check_engine``.

    Returns:
        ``(12,)`` in the order of the API's summary, -1 where there is nothing to score.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # engines print their progress
        return _STATS[engine](inputs)
