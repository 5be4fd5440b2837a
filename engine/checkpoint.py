"""Checkpoints that survive a crash at any moment and cannot run code.

A file holds tensors and plain types only and is read with ``weights_only=True``. It is written
beside its place, forced to disk and renamed; the file that stood there before stays as
``previous.pt``. torch's format is a zip archive; its comment holds a digest of the whole file, so a
damaged byte is detected before anything of it is used. (The CRC-32 that zip has for each entry does
not cover where the entries stand: torch reads arbitrary memory when such a byte is damaged.)
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError, shown
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
SEAL = b"blake2b of all before: "  # and 32 bytes
SEAL_SIZE = len(SEAL) + 32
log = logging.getLogger(__name__)


def save_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically; what ``path`` held becomes ``previous.pt`` beside it.

    Raises:
        InputError: the disk is full or the folder cannot be written; the old files are untouched.
    """
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **contents}, buffer)
    _seal(buffer)
    write_atomically(path, buffer.getbuffer(), previous=path.with_name("previous.pt"))


def _seal(archive: io.BytesIO) -> None:
    """Put the digest into the comment of a zip archive, whose length are its last two bytes."""
    view = archive.getbuffer()
    view[-2:] = struct.pack("<H", SEAL_SIZE)
    digest = hashlib.blake2b(view, digest_size=32).digest()
    view.release()
    archive.seek(0, io.SEEK_END)
    archive.write(SEAL + digest)


def _check_undamaged(path: Path) -> None:
    """Raise InputError for what is not as it was written, and for archives that may be bombs."""
    if _seal_is_broken(path):
        raise InputError(f"{path}: damaged (its checksum is another); use another checkpoint")
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise InputError(f"{path}: is compressed, which a checkpoint never is")
        damaged = archive.testzip()
    if damaged is not None:
        raise InputError(f"{path}: damaged (checksum of {damaged}); use another checkpoint")


def _seal_is_broken(path: Path) -> bool:
    """Whether a file has a digest that is not its own; one without it has CRCs to be checked."""
    with path.open("rb") as file:
        left = file.seek(0, io.SEEK_END) - SEAL_SIZE
        file.seek(max(left, 0))
        seal = file.read()
        if not seal.startswith(SEAL):
            return False
        file.seek(0)
        digest = hashlib.blake2b(digest_size=32)
        while left > 0:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
    return seal != SEAL + digest.digest()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint of this program, or would run
            code if it were unpickled.
    """
    path = Path(path)
    try:
        _check_undamaged(path)
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
