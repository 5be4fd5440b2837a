"""Class rows of the heads: what they are in a weights file, and their order in the detector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from data.errors import InputError
from detector.pretrained.weight_files import StoredWeights

# The rows of torchvision's detectors: 80 classes, the background and gaps in COCO's ids.
COCO_ROWS: tuple[str, ...] = tuple(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
NAMELESS = frozenset({"N/A"})
BACKGROUND_ROW = "__background__"

# Layers with rows for each class, and the number of adjacent rows per class in them.
CLASS_LAYERS = {
    "head.classification_head.cls_logits": 1,
    "roi_heads.box_predictor.cls_score": 1,
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_predictor.mask_fcn_logits": 1,
}


def class_rows(stored: StoredWeights) -> tuple[str, ...]:
    """Return the classes that the rows of a detector's file stand for; empty if unknown."""
    scores = stored.state.get("roi_heads.box_predictor.cls_score.bias")
    if stored.classes is not None:
        return stored.classes if scores is None else (BACKGROUND_ROW, *stored.classes)
    if scores is not None:
        count = len(scores)
    else:
        logits = stored.state.get("head.classification_head.cls_logits.bias", torch.empty(0))
        deltas = stored.state.get("head.regression_head.bbox_reg.bias", torch.empty(0))
        count = 4 * logits.numel() // max(1, deltas.numel())
    return COCO_ROWS if count == len(COCO_ROWS) else ()


def has_class_rows(name: str) -> bool:
    """Return whether a parameter belongs to a layer in ``CLASS_LAYERS``."""
    return name.rpartition(".")[0] in CLASS_LAYERS


def sort_class_layers(
    state: dict[str, Tensor],
    own_state: dict[str, Tensor],
    rows: Sequence[str],
    own_rows: Sequence[str],
    source: str,
) -> None:
    """Replace the class layers of ``state`` by our own, with the rows of known classes copied.

    Args:
        state: the state dict of the file, modified in place.
        own_state: the state dict of the detector.
        rows: the classes of the file's rows.
        own_rows: the classes of the detector's rows.
        source: name of the file for messages.

    Raises:
        InputError: the layers differ in the number of rows per class, anchors or channels.
    """
    pairs = [(own_rows.index(name), rows.index(name)) for name in own_rows if name in rows]
    targets, sources = (torch.tensor(indices) for indices in zip(*pairs, strict=True))
    for name in filter(has_class_rows, state.keys() & own_state.keys()):
        side_by_side = CLASS_LAYERS[name.rpartition(".")[0]]
        own, given = own_state[name].clone(), state[name]
        try:
            own_view = own.view(-1, len(own_rows), side_by_side, *own.shape[1:])
            given_view = given.reshape(-1, len(rows), side_by_side, *own.shape[1:])
            own_view[:, targets.to(own.device)] = given_view[:, sources].to(own)
        except (RuntimeError, IndexError) as error:  # different number of rows, anchors or channels
            raise InputError(
                f"detector.weights: {source} does not fit: {name} has shape {tuple(given.shape)} "
                f"for {len(rows)} classes, in the detector {tuple(own.shape)} for {len(own_rows)}; "
                "use the detector.type, fpn_channels and anchors that the file was trained with"
            ) from error
        state[name] = own
