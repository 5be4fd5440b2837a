"""Checkpoints that survive a crash at any moment and cannot run code.

A file holds tensors and plain types only and is read with ``weights_only=True``. It is written to a
temporary file, synced to disk and renamed; the file that it replaces is kept as ``previous.pt``. It
holds a digest of itself (``detector/pretrained/weight_archive.py``), so a damaged byte is detected
before any content is used.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import InputError, shown, unreadable
from detector.pretrained.weight_archive import fault_of, seal
from detector.pretrained.weight_files import refused_content
from engine.process.atomic_file import write_atomically
from engine.strict_yaml import MAX_DEPTH

VERSION = 1
RESUMED = ("last.pt", "previous.pt")  # what --resume continues from, in this order
# Keys needed for evaluation, and those also needed to resume training.
KEYS = ("version", "detector", "classes", "config")
STATE = {
    "weighting": dict,
    "optimizer": dict,
    "schedule": dict,
    "scaler": dict,
    "progress": dict,
    "windows": list,
    "global_batch": int,
}
INTEGER_LIMIT = 2**63  # exclusive bound of whole numbers
log = logging.getLogger(__name__)


def save_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically; a file already at ``path`` becomes ``previous.pt`` beside it.

    Raises:
        InputError: the disk is full or the folder cannot be written; the old files are untouched.
    """
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **contents}, buffer)
    seal(buffer)
    write_atomically(path, buffer.getbuffer(), previous=path.with_name("previous.pt"))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint of this program, or would run
            code if it were unpickled.
    """
    path = Path(path)
    try:
        fault = fault_of(path)
        if fault is not None:
            raise InputError(f"{path}: is {fault}; use another checkpoint")
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            f"{path}: checkpoint not found; give last.pt or best.pt of a run"
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give last.pt or best.pt of a run") from None
    except OSError as error:
        raise unreadable(path, error) from error
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused: {refused_content(error)}") from None
    except InputError:
        raise
    except Exception as error:  # zipfile and torch raise a dozen types for damaged bytes
        raise InputError(
            f"{path}: not a readable checkpoint: {error}; give last.pt or best.pt of a run"
        ) from None
    if not isinstance(contents, dict) or any(key not in contents for key in KEYS):
        raise InputError(
            f"{path}: not a checkpoint of this program (which has {', '.join(KEYS)}); "
            "give weights of a backbone or a torchvision detector as detector.weights"
        )
    if contents["version"] != VERSION:
        raise InputError(
            f"{path}: has format {contents['version']}, but this version reads format "
            f"{VERSION}; retrain, or read it with the version that wrote it"
        )
    _check_parts(path, contents)
    return contents


def _check_parts(path: Path, contents: Mapping[str, Any]) -> None:
    """Raise InputError for a checkpoint that names no classes, weights or config."""
    classes = contents["classes"]
    if not isinstance(classes, list) or not classes or not all(type(c) is str for c in classes):
        raise InputError(
            f"{path}: its classes are {shown(classes)}, not a list of names; use another checkpoint"
        )
    for key in ("detector", "config"):
        if not isinstance(contents[key], dict):
            raise InputError(
                f"{path}: its {key} is {shown(contents[key])}, not a mapping; "
                "use another checkpoint"
            )
    for key, value in contents["detector"].items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise InputError(
                f"{path}: its detector holds {shown({key: value})}, not a named tensor; "
                "use another checkpoint"
            )
    for key, value in contents["config"].items():
        if not (isinstance(key, str) and isinstance(value, dict) and _has_text_keys(value)):
            raise InputError(
                f"{path}: its config holds {shown({key: value})}, not a config block; "
                "use another checkpoint"
            )


def _has_text_keys(values: Mapping[Any, Any], levels: int = MAX_DEPTH) -> bool:
    """Whether all keys of nested mappings are text and the nesting depth is bounded."""
    return levels > 0 and all(
        isinstance(key, str) and (not isinstance(value, dict) or _has_text_keys(value, levels - 1))
        for key, value in values.items()
    )


def check_state(path: Path, contents: Mapping[str, Any]) -> None:
    """Check that a checkpoint holds the state of a training run.

    Raises:
        InputError: a part is missing or invalid.
    """
    for key, kind in STATE.items():
        if not isinstance(contents.get(key), kind):
            raise InputError(
                f"{path}: its {key} is {shown(contents.get(key))}, expected {kind.__name__}; "
                "use another checkpoint"
            )
    for key, value in contents["progress"].items():
        if not _is_progress(key, value):
            raise InputError(
                f"{path}: its progress has {shown(key)}: {shown(value)}, not a valid value; "
                "use another checkpoint"
            )
    unlogged = contents.get("unlogged")
    is_line = isinstance(unlogged, dict) and {"epoch", "step"} <= unlogged.keys()
    if not (unlogged is None or is_line):
        raise InputError(
            f"{path}: its unlogged is {shown(unlogged)}, not a log line; use another checkpoint"
        )
    for window in contents["windows"]:
        if not _is_window(window):
            raise InputError(
                f"{path}: its windows hold {shown(window)}, not loss statistics; "
                "use another checkpoint"
            )


def _is_progress(key: object, value: object) -> bool:
    """Whether a field of ``engine.state.Progress`` may have a value."""
    if value is None:
        return key in ("best_score", "best_epoch")
    if key == "best_score":
        return type(value) in (int, float)
    return type(value) is int and 0 <= value < INTEGER_LIMIT


def _is_window(window: object) -> bool:
    """Whether a value is the loss statistics of a window, as in ``TrainState.windows``."""
    if not (isinstance(window, dict) and _has_text_keys(window)):
        return False
    statistics = [window.get("loss_mean"), window.get("loss_std")]
    return type(window.get("step")) is int and all(
        isinstance(values, dict)
        and all(isinstance(value, Tensor) and value.dim() == 0 for value in values.values())
        for values in statistics
    )


def load_latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest readable checkpoint of a run: ``last.pt``, else ``previous.pt`` with a warning.

    Returns:
        The file and its contents.

    Raises:
        InputError: neither file can be read.
    """
    if not any((folder / name).exists() for name in RESUMED):
        raise InputError(
            f"--resume: {folder} has no checkpoint yet; omit --resume, or use --requeue to start "
            "when there is none"
        )
    problems = []
    for name in RESUMED:
        try:
            contents = load_checkpoint(folder / name)
            check_state(folder / name, contents)
        except InputError as error:
            problems.append(str(error))
            continue
        if problems:
            log.warning("%s; continuing from %s", problems[0], folder / name)
        return folder / name, contents
    raise InputError(
        f"--resume: no readable checkpoint: {'; '.join(problems)}; restart with another train.name"
    )


def check_classes(saved: Mapping[str, Any], classes: Sequence[str] | None) -> None:
    """Check that ``data.classes``, if given, are those that a checkpoint was trained on.

    Raises:
        InputError: they differ.
    """
    if classes is not None and list(classes) != saved["classes"]:
        raise InputError(
            f"data.classes: {list(classes)} contradicts the checkpoint, which was trained on "
            f"{saved['classes']}; omit data.classes"
        )
