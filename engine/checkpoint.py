"""Checkpoints that survive a crash at any moment and cannot run code.

A file holds tensors and plain types only and is read with ``weights_only=True``. It is written
beside its place, forced to disk and renamed; the file that stood there before stays as
``previous.pt``. It holds a digest of itself (``detector/weight_archive.py``), so a damaged byte is
detected before anything of it is used.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError, shown
from detector.weight_archive import fault_of, seal
from detector.weight_files import refused_content
from engine.atomic_file import write_atomically

VERSION = 1
# What a file must hold to be evaluated, and what beyond that to be trained on.
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
log = logging.getLogger(__name__)


def save_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically; what ``path`` held becomes ``previous.pt`` beside it.

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
        raise InputError(f"{path}: there is no such checkpoint") from None
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: is refused: {refused_content(error)}") from None
    except InputError:
        raise
    except Exception as error:  # zipfile and torch raise a dozen types for damaged bytes
        raise InputError(f"{path}: not a readable checkpoint: {error}") from None
    if not isinstance(contents, dict) or any(key not in contents for key in KEYS):
        raise InputError(
            f"{path}: not a checkpoint of this program (it has no {', '.join(KEYS)}); "
            "weights of a backbone or a torchvision detector go into detector.weights"
        )
    if contents["version"] != VERSION:
        raise InputError(
            f"{path}: written in format {contents['version']}, this program reads {VERSION}"
        )
    classes = contents["classes"]
    if not isinstance(classes, list) or not classes or not all(type(c) is str for c in classes):
        raise InputError(f"{path}: its classes are {shown(classes)}, no list of names")
    for key in ("detector", "config"):
        if not isinstance(contents[key], dict):
            raise InputError(f"{path}: its {key} is {shown(contents[key])}, no mapping")
    return contents


def check_state(path: Path, contents: Mapping[str, Any]) -> None:
    """Raise InputError for a checkpoint that has no state of a training run."""
    for key, kind in STATE.items():
        if not isinstance(contents.get(key), kind):
            raise InputError(
                f"{path}: its {key} is {shown(contents.get(key))}, no {kind.__name__}; "
                "use another checkpoint"
            )


def load_latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest readable checkpoint of a run: ``last.pt``, else ``previous.pt`` with a warning.

    Returns:
        Its file and what that holds.

    Raises:
        InputError: neither can be read.
    """
    problems = []
    for name in ("last.pt", "previous.pt"):
        try:
            contents = load_checkpoint(folder / name)
            check_state(folder / name, contents)
        except InputError as error:
            problems.append(str(error))
            continue
        if problems:
            log.warning("%s; going on from %s", problems[0], folder / name)
        return folder / name, contents
    raise InputError(f"--resume: nothing to go on from: {'; '.join(problems)}")
