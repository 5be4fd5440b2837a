"""Score a split from the output of a detector or a file of detections."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from data.annotations import Annotations
from data.errors import InputError
from data.target import Batch
from detector.postprocessing import paste_masks, resize_detections
from engine.evaluation.coco_ap import coco_scores
from engine.evaluation.coco_engines import Engine
from engine.evaluation.coco_results import read_coco_json
from engine.evaluation.comp4 import read_comp4
from engine.evaluation.detections import Detections, concatenate, make_detections
from engine.evaluation.voc_map import voc_scores
from engine.precision import Amp, autocast

# Masks are pasted into the original image in groups of this many pixels, one byte each.
PIXELS_AT_ONCE = 1 << 26


@torch.no_grad()
def detect(
    detector: nn.Module,
    loader: Iterable[Batch],
    annotations: Annotations,
    device: torch.device,
    amp: Amp = "none",
) -> Detections:
    """Run a detector over a loader; in distributed runs, over this rank's share of the images.

    The detector keeps its mode, training or evaluation.

    Args:
        detector: maps, in evaluation mode, a list of images to a list of dicts ``boxes (D, 4)``,
            ``labels (D,)``, ``scores (D,)`` and optionally ``masks (D, 1, M, M)``.
        loader: batches whose ``indices`` and ``left_out`` are rows of the annotations.
        annotations: annotations of the split; only the original sizes are read.
        device: device of the detector.
        amp: automatic mixed precision.

    Returns:
        Detections in original coordinates, inside the images, and the rows of the images seen.
    """
    was_training = detector.training
    detector.eval()
    parts = [make_detections([], [], [], [], seen=[])]  # a rank may have no share
    try:
        for batch in loader:
            parts.append(make_detections([], [], [], [], seen=batch.left_out))
            images = [image.to(device, non_blocking=True) for image in batch.images]
            with autocast(device, amp):
                outputs = detector(images) if images else []
            for row, image, output in zip(batch.indices, images, outputs, strict=True):
                height, width = image.shape[-2:]
                parts.append(_to_original_coordinates(output, (height, width), row, annotations))
    finally:
        detector.train(was_training)
    return concatenate(parts)


def _to_original_coordinates(
    output: dict[str, Tensor], size_hw: tuple[int, int], row: int, annotations: Annotations
) -> Detections:
    """The detections of one image in its original coordinates, on the host."""
    height, width = annotations.sizes[row].tolist()
    output = resize_detections(output, size_hw, (height, width))
    rles = None
    if "masks" in output:
        rles = _encode_masks(output["masks"], output["boxes"], (height, width))
    # float32 rounding can push a box slightly beyond the border that the detector clipped it to
    boxes = np.minimum(output["boxes"].double().cpu().numpy(), [width, height, width, height])
    return make_detections(
        np.full(len(boxes), row),
        output["labels"].cpu().numpy(),
        output["scores"].double().cpu().numpy(),
        np.maximum(boxes, 0),
        rles,
        [row],
    )


def _encode_masks(masks: Tensor, boxes: Tensor, size_hw: tuple[int, int]) -> list[bytes]:
    """``(D, 1, M, M)`` probabilities in their boxes -> COCO's run lengths in the image."""
    group = max(1, PIXELS_AT_ONCE // (size_hw[0] * size_hw[1]))
    rles: list[bytes] = []
    for start in range(0, len(masks), group):
        part = slice(start, start + group)
        pasted = paste_masks(masks[part], boxes[part], size_hw)
        # run lengths go down the columns: (D, W, H) in C order is (H, W, D) in Fortran order
        columns = pasted.transpose(1, 2).contiguous().view(torch.uint8).cpu().numpy()
        rles += [rle["counts"] for rle in coco_mask.encode(columns.transpose(2, 1, 0))]
    return rles


def read_detections(path: str | Path, annotations: Annotations) -> Detections:
    """Read detections: a folder as comp4 files, a file as COCO results JSON.

    Raises:
        InputError: see ``read_comp4`` and ``read_coco_json``.
    """
    return (read_comp4 if Path(path).is_dir() else read_coco_json)(path, annotations)


def score(
    detections: Detections,
    annotations: Annotations,
    iou: float = 0.5,
    engine: Engine = "pycocotools",
) -> dict[str, Any]:
    """Compute VOC and COCO scores in the form of ``metrics.json``.

    Args:
        detections: detections of the whole split. If they record the images seen, that must be
            every image exactly once.
        annotations: the ground truth.
        iou: IoU threshold of the VOC scores.
        engine: the program that computes the COCO scores.

    Returns:
        ``{"split": name, "images": int, "voc_iou": iou, "voc": {"area": ..., "11point": ...},
        "coco": {"bbox": ...}}`` with ``"segm"`` beside ``"bbox"`` where both detections and
        annotations have masks.
    """
    _check_coverage(detections, annotations)
    coco = {"bbox": coco_scores(detections, annotations, "bbox", engine)}
    if has_masks(detections, annotations):
        coco["segm"] = coco_scores(detections, annotations, "segm", engine)
    return {
        "split": annotations.split,
        "images": len(annotations),
        "voc_iou": iou,
        "voc": voc_scores(detections, annotations, iou),
        "coco": coco,
    }


def has_masks(detections: Detections, annotations: Annotations) -> bool:
    """Whether masks can be scored: both the detections and the ground truth have them."""
    return detections.rles is not None and masks_are_annotated(annotations)


def masks_are_annotated(annotations: Annotations) -> bool:
    """Whether any object of the ground truth has a mask."""
    return annotations.masks is not None and bool(annotations.masks.present().any())


def check_best(name: str, annotations: Annotations) -> None:
    """Check that the score that selects the best epoch can be computed.

    Raises:
        InputError: it scores masks and the annotations have none.
    """
    if name == "coco_segm_AP" and not masks_are_annotated(annotations):
        raise InputError(
            f"train.best: coco_segm_AP scores masks, but {annotations.source} has none; "
            "choose voc_mAP or coco_AP"
        )


def _check_coverage(detections: Detections, annotations: Annotations) -> None:
    """Check the invariant that the shares of ranks cover every image exactly once."""
    if detections.seen is None:
        return
    times: npt.NDArray[np.int64] = np.bincount(detections.seen, minlength=len(annotations))
    if len(times) != len(annotations) or (times != 1).any():
        wrong = np.flatnonzero(times != 1)
        raise RuntimeError(
            f"{annotations.source}: {len(wrong)} of {len(annotations)} images were not evaluated "
            f"exactly once, the first: row {wrong[0]}, {times[wrong[0]]} times"
        )
