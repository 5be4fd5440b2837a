"""Build Albumentations transforms from their names in a config."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import ValidationError

from data.errors import InputError

# Albumentations 2.0.8 dilates the stack of all boxes as if it were one image, which merges them.
# ConstrainedCoarseDropout would compare its classes with the row numbers that boxes carry here.
_REFUSED = {
    "Morphological": "Albumentations returns wrong boxes for it",
    "ConstrainedCoarseDropout": "it has no access to the classes here",
}
# One object becomes several boxes, each of which would keep the whole mask.
_WRONG_MASKS = {"RandomGridShuffle"}
# OpenCV border modes: the default of all transforms, and one that copies objects without boxes.
_CONSTANT, _WRAP = 0, 3
_TO_FLOAT = {"Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"}
_ABSTRACT = {"BasicTransform", "BaseCompose", "DualTransform", "ImageOnlyTransform"}
_NEED_CODE = {"Compose", "ReplayCompose", "Lambda"}


def import_albumentations() -> ModuleType:
    """Import Albumentations without its side effects."""
    # The import checks the package registry for updates: seconds of timeout without a network.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations  # here, because it takes half a second and most runs only flip

    return albumentations


def build_transforms(
    library: ModuleType, transforms: Sequence[Any], with_masks: bool = False
) -> list[Any]:
    """Build transforms as a config names them.

    Args:
        library: the Albumentations module.
        transforms: names, or ``{Name: {parameter: value}}``.
        with_masks: also refuse transforms after which boxes and masks do not match.

    Raises:
        InputError: a transform or parameter is unknown or not supported; the message names the
            choices.
    """
    return [_build_transform(library, transform, with_masks) for transform in transforms]


def _build_transform(library: ModuleType, transform: Any, with_masks: bool) -> Any:
    """``{Name: {parameter: value}}`` or ``Name`` -> an Albumentations transform."""
    if isinstance(transform, str):
        transform = {transform: {}}
    if not isinstance(transform, Mapping) or len(transform) != 1:
        raise InputError(
            f"data.augment: {transform!r} is not a transform; write {{Name: {{parameter: value}}}}"
        )
    name, parameters = next(iter(transform.items()))
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, Mapping):
        raise InputError(f"data.augment: {name}: {parameters!r} must be {{parameter: value}}")
    kind = _find_transform(library, str(name))
    known = _check_parameters(kind, str(name), parameters)
    parameters = dict(parameters)
    for key in parameters.keys() & {"first", "second"}:  # OneOrOther's
        parameters[key] = _build_transform(library, parameters[key], with_masks)
    if "transforms" in parameters:
        inner = parameters["transforms"]
        if not isinstance(inner, list | tuple):
            raise InputError(
                f"data.augment: {name}: transforms: {inner!r} is not a list; write "
                "[{Name: {parameter: value}}, ...]"
            )
        parameters["transforms"] = build_transforms(library, inner, with_masks)
    try:
        built = kind(**parameters)
    except Exception as error:  # pydantic's and the transforms' own checks
        raise InputError(f"data.augment: {name}: {one_line(error)}; it has {known}") from None
    _check_targets(built, str(name))
    _check_border(built, str(name), with_masks)
    if with_masks:
        _check_masks(built, str(name))
    return built


def _check_targets(built: Any, name: str) -> None:
    """Refuse transforms that need more than one image and its objects, such as a second image."""
    needed = getattr(built, "targets_as_params", ())
    if needed:
        raise InputError(
            f"data.augment: {name}: it needs {', '.join(needed)} with each image, which is not "
            "supported; remove it"
        )


def _check_border(built: Any, name: str, with_masks: bool) -> None:
    """Refuse border modes that repeat parts of objects without matching boxes and masks.

    Reflected copies get their own boxes, each of which would keep the mask of all copies.
    """
    border = getattr(built, "border_mode", _CONSTANT)
    if with_masks and border != _CONSTANT:
        raise InputError(
            f"data.augment: {name}: masks do not fit their boxes after border_mode {border}, which "
            "repeats pixels at the border; set border_mode: 0 (constant)"
        )
    if border == _WRAP:
        raise InputError(
            f"data.augment: {name}: border_mode {border} (wrap) copies objects without their "
            "boxes; set border_mode: 0 (constant), 1 (replicate) or 4 (reflect)"
        )


def _check_masks(built: Any, name: str) -> None:
    """Refuse holes that shrink boxes without being cut out of the masks, too."""
    if name in _WRONG_MASKS:
        raise InputError(f"data.augment: {name}: masks do not fit their boxes after it; remove it")
    for key in ("fill_mask", "mask_drop_value"):
        fill = getattr(built, key, 0)
        if fill is None and key == "fill_mask":
            raise InputError(
                f"data.augment: {name}: it cuts boxes but not their masks; set {key}: 0"
            )
        if fill is not None and np.any(fill):
            raise InputError(
                f"data.augment: {name}: filled pixels would belong to every mask; set {key}: 0"
            )


def _find_transform(library: ModuleType, name: str) -> Callable[..., Any]:
    if name in _TO_FLOAT:
        raise InputError(
            f"data.augment: {name}: pixels must stay uint8; they are normalized on the device; "
            "remove it"
        )
    if name in _REFUSED:
        raise InputError(f"data.augment: {name}: {_REFUSED[name]}; remove it")
    bases = (library.BasicTransform, library.BaseCompose)
    known = {
        known: kind
        for known, kind in vars(library).items()
        if inspect.isclass(kind)
        and issubclass(kind, bases)
        and not issubclass(kind, library.Transform3D)  # of volumes
        and known not in _ABSTRACT | _NEED_CODE
    }
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4)
        hint = f"similar: {', '.join(near)}" if near else "see the list in its documentation"
        raise InputError(f"data.augment: {name!r} is not an Albumentations transform; {hint}")
    return known[name]


def _check_parameters(kind: Callable[..., Any], name: str, parameters: Mapping[str, Any]) -> str:
    """Refuse unknown parameters, and return the known ones for messages.

    Albumentations only warns of unknown parameters and continues with its defaults.
    """
    known = [key for key in inspect.signature(kind).parameters if key != "self"]
    unknown = [str(key) for key in parameters if key not in known]
    if unknown:
        raise InputError(
            f"data.augment: {name}: no parameter {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return ", ".join(known)


def moves_boxes(library: ModuleType, transform: Any) -> bool:
    """Return whether a transform, or one inside it, may do more than change colors."""
    if isinstance(transform, library.BaseCompose):
        return any(moves_boxes(library, inner) for inner in transform.transforms)
    return not isinstance(transform, library.ImageOnlyTransform)


def one_line(error: Exception) -> str:
    """Format an error on one line; pydantic's messages span several."""
    if isinstance(error.__cause__, ValidationError):
        complaints = error.__cause__.errors()
        return "; ".join(f"{'.'.join(map(str, c['loc']))}: {c['msg']}" for c in complaints)
    return " ".join(str(error).split())
