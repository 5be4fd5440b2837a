"""Pretrained weights, of ImageNet or from a file, loaded into a detector before training.

Architectures are built without them (``detector.build``); checkpoints of a run bring their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from torch import Tensor
from torchvision.models import get_model_weights
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_Weights,
)

from data.errors import InputError, shown
from detector.anchors import same_anchors
from detector.build import Detector
from detector.config import FROZEN_NORMS, AnchorConfig, DetectorConfig
from detector.norm import DEFAULT_EPS
from detector.pretrained.class_rows import (
    BACKGROUND_ROW,
    COCO_ROWS,
    NAMELESS,
    class_rows,
    has_class_rows,
    sort_class_layers,
)
from detector.pretrained.weight_files import StoredWeights, fetch_weights, read_weights

# torchvision's detectors on ResNet-50, trained on COCO.
COCO_WEIGHTS = {
    "retinanet": RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    "faster_rcnn": FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    "mask_rcnn": MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
}
BODY = "backbone.body."
BOX_HEAD = "roi_heads.box_head."
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm
# Blocks of layers that are useless if only a part of them comes from a file, and the cure.
WHOLES = {
    r"backbone\.fpn\.(inner|layer)_blocks\.\d+": "change detector.fpn_norm",
    r"rpn\.head": "change detector.rpn.conv_depth",
    r"head\.(classification|regression)_head\.conv": "change detector.retinanet.head_norm or "
    "detector.retinanet.tower_depth",
    r"roi_heads\.mask_head": "change detector.mask.channels; with norms in the mask head, as in "
    "torchvision's v2, choose other weights or detector.type=faster_rcnn",
}
# Options that define what the heads' box deltas are relative to.
ANCHOR_OPTIONS = tuple(f"anchors.{name}" for name in AnchorConfig.model_fields)


@dataclass(frozen=True)
class PretrainedReport:
    """What was loaded; ``str`` formats it for the log.

    Attributes:
        source: the file, or ``none``.
        norm_eps: the resulting eps of the backbone's norms.
        loaded: number of tensors taken from the file.
        classes_kept: classes whose rows in the heads were found by name.
        reinitialized: parts that keep random weights: names of parameters, or
            ``class <name>`` for the rows of a class.
        random: names of all parameters and buffers of the detector with at least some rows that
            are not from the file.
        unused: modules of the file that the detector does not have.
        trained_with: options that the checkpoint was trained with and that differ here, as text.
    """

    source: str
    norm_eps: float
    loaded: int = 0
    classes_kept: tuple[str, ...] = ()
    reinitialized: tuple[str, ...] = ()
    random: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()
    trained_with: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"{self.loaded} tensors" if self.loaded else "random initialization"
        parts = [f"weights: {self.source}: {what}, norm eps {self.norm_eps:g}"]
        if self.classes_kept:
            parts.append(f"heads kept for {len(self.classes_kept)} classes")
        if self.reinitialized:
            parts.append(f"random: {', '.join(self.reinitialized)}")
        if self.unused:
            parts.append(f"not used: {', '.join(self.unused)}")
        return "; ".join(parts)


def load_pretrained(
    detector: Detector, config: DetectorConfig, classes: Sequence[str]
) -> PretrainedReport:
    """Load the configured weights into a new detector, before a new training run.

    Args:
        detector: from ``build_detector``, with random weights.
        config: the detector's options, which name the weights.
        classes: the names of the detector's classes, without background.

    Raises:
        InputError: frozen layers would keep random weights, the file is missing, damaged or of
            another architecture, or the weights cannot be downloaded.
    """
    if config.weights == "none":
        _refuse_frozen_random(config)
        names = frozenset(detector.state_dict())
        return PretrainedReport("none", norm_eps=detector.backbone.norm_eps, random=names)
    if config.weights == "imagenet":
        stored = fetch_weights(get_model_weights(config.backbone)["IMAGENET1K_V1"].url)
    elif config.weights == "coco":
        stored = fetch_weights(COCO_WEIGHTS[config.type].url)
    else:
        stored = read_weights(Path(config.weights))
    if any(name.startswith("backbone.") for name in stored.state):
        return _load_detector(detector, config, classes, stored)
    return _load_body(detector, config, stored)


def _refuse_frozen_random(config: DetectorConfig) -> None:
    frozen = [f"norm: {config.norm}"] if config.norm in FROZEN_NORMS else []
    if config.trainable_stages < 5:
        frozen.append(f"trainable_stages: {config.trainable_stages}")
    if frozen:
        raise InputError(
            f"detector.weights: none would leave frozen layers with random weights "
            f"({', '.join(frozen)}); set detector.weights=imagenet, or detector.norm=batch and "
            "detector.trainable_stages=5"
        )


def _load_body(
    detector: Detector, config: DetectorConfig, stored: StoredWeights
) -> PretrainedReport:
    """Load the weights of a classification network, without its last layers."""
    state = {}
    for name, tensor in stored.state.items():
        if name.startswith("features."):  # MobileNet
            state[BODY + name.removeprefix("features.")] = tensor
        elif not name.startswith(("fc.", "classifier.")):
            state[BODY + name] = tensor
    missing, _ = _load_strictly(detector, state, config, stored.source)
    return PretrainedReport(
        stored.source,
        loaded=len(state),
        reinitialized=("pyramid", "heads"),
        random=frozenset(missing),
        norm_eps=detector.backbone.norm_eps,
    )


def _load_detector(
    detector: Detector, config: DetectorConfig, classes: Sequence[str], stored: StoredWeights
) -> PretrainedReport:
    """Load the weights of a whole detector, with its class rows in our order."""
    rows = class_rows(stored)
    state = dict(stored.state)
    in_both = any(has_class_rows(name) for name in state.keys() & detector.state_dict().keys())
    known = set(rows) - NAMELESS if in_both else set()
    found = [name for name in classes if name in known]
    if found:
        own_rows = classes if config.type == "retinanet" else [BACKGROUND_ROW, *classes]
        sort_class_layers(state, detector.state_dict(), rows, own_rows, stored.source)
    else:
        state = {name: tensor for name, tensor in state.items() if not has_class_rows(name)}
    missing, unused = _load_strictly(detector, state, config, stored.source)
    random_layers = [name for name in missing if name.startswith(BOX_HEAD)]
    if found and random_layers:
        raise InputError(
            f"detector.weights: {stored.source} does not fit: it has rows of the classes, but not "
            f"{random_layers[0]}, whose outputs they read, so its box head differs, as in "
            f"torchvision's v2; use only its backbone: a file of the tensors {BODY}*"
        )
    if config.norm_eps is None and _was_trained_without_eps(stored, rows, config):
        detector.backbone.norm_eps = 0.0
    elif detector.backbone.norm_eps == 0 and config.norm not in FROZEN_NORMS:
        # The file's eps is 0, but a variance of batch statistics may be 0 as well.
        detector.backbone.norm_eps = DEFAULT_EPS
    new_classes = [f"class {name}" for name in classes if name not in found]
    layers_of_classes = filter(has_class_rows, state) if new_classes else ()
    return PretrainedReport(
        stored.source,
        loaded=len(state) - len(unused),
        classes_kept=tuple(found),
        reinitialized=(*_modules_of(missing), *new_classes),
        random=frozenset((*missing, *layers_of_classes)),
        unused=_modules_of(unused),
        norm_eps=detector.backbone.norm_eps,
        trained_with=_other_meanings(stored, config),
    )


def _other_meanings(stored: StoredWeights, config: DetectorConfig) -> tuple[str, ...]:
    """List options of the box encoding that differ from those of a checkpoint of the same type."""
    try:
        theirs = DetectorConfig.model_validate(stored.config["detector"])
        # Options of the same anchors can be written in several ways.
        names = () if same_anchors(theirs, config) else ANCHOR_OPTIONS
    except (TypeError, LookupError, ValueError):  # no checkpoint, or one of another version
        return ()
    if theirs.type != config.type:
        return ()
    if config.type != "retinanet":
        names = (*names, "roi.box_weights")
    values = ((name, attrgetter(name)(theirs), attrgetter(name)(config)) for name in names)
    return tuple(
        f"{name} {json.dumps(before)}, here {json.dumps(now)}"
        for name, before, now in values
        if before != now
    )


def _was_trained_without_eps(
    stored: StoredWeights, rows: Sequence[str], config: DetectorConfig
) -> bool:
    """Return whether this is one of torchvision's ``COCO_V1`` detectors on ResNet-50.

    They were trained before ``FrozenBatchNorm2d`` had an eps, and torchvision sets it to 0 for
    them. They are recognized by COCO's 91 rows and by norms that never counted batches.
    """
    counted = any(name.endswith("num_batches_tracked") for name in stored.state)
    published = rows == COCO_ROWS and stored.classes is None and not counted
    return published and config.norm in FROZEN_NORMS and config.backbone == "resnet50"


def _load_strictly(
    detector: Detector, state: dict[str, Tensor], config: DetectorConfig, source: str
) -> tuple[list[str], list[str]]:
    """Load all tensors that match by name; the network below the pyramid must match completely.

    Returns:
        The names that the file lacks, and those that the detector lacks.

    Raises:
        InputError: a layer has another shape, the network below the pyramid differs, or a block
            above it would be loaded only in part.
    """
    try:
        missing, unused = detector.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        problems = str(error).splitlines()[1:]
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise InputError(
            f"detector.weights: {source} does not fit detector.type={config.type}, "
            f"backbone={config.backbone}, fpn_channels={config.fpn_channels}: "
            f"{'; '.join(repr(line.strip()[:250]) for line in problems[:2])}{more}; set detector.* "
            f"(also levels, fpn_channels and retinanet.p6_from) as the file was trained with, or "
            f"use only its backbone: a file of the tensors {BODY}*"
        ) from error
    body = [name for name in (*missing, *unused) if name.startswith(BODY)]
    if body and all(name.endswith(STATISTICS) for name in body):
        raise InputError(
            f"detector.weights: {source} and detector.norm={config.norm} do not fit: one of them "
            "has group norm, the other batch norm; change detector.norm"
        )
    if body:
        raise InputError(
            f"detector.weights: {source} does not fit detector.backbone={config.backbone}: "
            f"{len(body)} parameters have no counterpart, the first is {shown(body[0])}; choose "
            "the backbone that the file was trained with"
        )
    _refuse_torn(set(detector.state_dict()) - set(missing), missing, unused, source)
    return missing, unused


def _refuse_torn(
    loaded: Collection[str], missing: Sequence[str], unused: Sequence[str], source: str
) -> None:
    """Raise InputError if only a part of a block's layers would be loaded (see ``WHOLES``)."""
    for layers, cure in WHOLES.items():
        pattern = re.compile(layers + r"(?=\.)")
        begun = {found[0] for name in loaded if (found := pattern.match(name))}
        lacking, left = (
            [name for name in names if (found := pattern.match(name)) and found[0] in begun]
            for names in (missing, unused)
        )
        if lacking or left:
            both = {"the file has no": lacking, "the detector has no": left}
            faults = [f"{text} {names[0]}" for text, names in both.items() if names]
            raise InputError(
                f"detector.weights: {source} does not fit: {', '.join(faults)}; {cure}"
            )


def _modules_of(names: Sequence[str]) -> tuple[str, ...]:
    """List the modules of some parameters, each once, in order."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))
