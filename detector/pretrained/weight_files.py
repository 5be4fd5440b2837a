"""Weight files: download, and safe reading without running code inside them."""

from __future__ import annotations

import json
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors.torch
import torch
from torch import Tensor

from data.errors import InputError
from detector.pretrained.weight_archive import fault_of

# Prefixes of data parallelism, torch.compile, and trainers that keep the model as an attribute.
WRAPPERS = ("module", "_orig_mod", "model")
ARCHIVE = b"PK\3\4"  # first bytes of a file that torch reads as a zip archive


@dataclass(frozen=True)
class StoredWeights:
    """The content of a weights file.

    Attributes:
        source: name of the file for messages.
        state: tensors by name.
        classes: class names (without background) of one of our checkpoints or exported files, else
            None.
        config: the whole config of one of our checkpoints, as plain, unchecked values.
    """

    source: str
    state: dict[str, Tensor]
    classes: tuple[str, ...] | None = None
    config: Any = None


def read_weights(path: Path) -> StoredWeights:
    """Read a ``.safetensors`` file, or a ``.pth`` / ``.pt`` file of tensors and plain types.

    A checkpoint may hold the weights under ``detector`` (ours, with ``classes``), ``model`` or
    ``state_dict``; an exported file of ours has ``classes`` in its metadata. Code in a pickle is
    never run.

    Raises:
        InputError: the file does not exist, is damaged, or contains more than tensors.
    """
    if not path.is_file():
        raise InputError(
            f"detector.weights: {path}: file not found; choose imagenet, coco, none or a file"
        )
    content = _read(path)
    config = content.get("config") if isinstance(content, dict) else None
    return StoredWeights(str(path), *_unwrap(content, path), config)


def fetch_weights(url: str) -> StoredWeights:
    """Read torchvision's weights from its cache; download them if needed and check their hash.

    Raises:
        InputError: the download failed; the message names the file and where to put it.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            hash_prefix = name.rpartition("-")[2].partition(".")[0] if "-" in name else None
            torch.hub.download_url_to_file(url, os.fspath(path), hash_prefix)
        except (OSError, RuntimeError, ValueError) as error:  # no network, wrong hash, bad address
            raise InputError(
                f"detector.weights: cannot download {url} ({_one_line(error)}); put the file "
                f"{name} at {path}, or set detector.weights to another file or none"
            ) from error
    return read_weights(path)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if (fault := _archive_fault(path)) is not None:
            raise InputError(
                f"detector.weights: {path} is {fault}; download it again or choose another file"
            )
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"detector.weights: {path} is refused: {refused_content(error)}; "
            "save only the state dict, or choose another file"
        ) from None
    except Exception as error:  # a damaged or malicious file makes the readers raise anything
        raise InputError(
            f"detector.weights: {path} is damaged or contains more than tensors "
            f"({_one_line(error)}); download it again or choose another file"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Read the tensors of a file, and the classes that ``scripts/export.py`` stores with them."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    state = safetensors.torch.load_file(path, device="cpu")
    return {"detector": state, "classes": _class_names(metadata.get("classes", ""))}


def _class_names(text: str) -> list[str] | None:
    """Parse a JSON list of strings; None for anything else that other programs may store there."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_list_of_texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list_of_texts else None


def refused_content(error: pickle.UnpicklingError) -> str:
    """Return why torch refused to unpickle a file, without its advice to do so anyway."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return f"it contains more than tensors ({found[1]})"
    return "it is damaged, or not a weights file"


def _archive_fault(path: Path) -> str | None:
    """Return what is wrong with a file if torch reads it as an archive; it reads pickles, too."""
    with path.open("rb") as file:
        is_archive = file.read(len(ARCHIVE)) == ARCHIVE
    return fault_of(path) if is_archive else None


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    classes = None
    if isinstance(content, dict):
        if isinstance(content.get("classes"), (list, tuple)):
            classes = tuple(str(name) for name in content["classes"])
        inner = [content[key] for key in ("detector", "model", "state_dict") if key in content]
        content = inner[0] if inner else content
    if not isinstance(content, dict) or not content or not all(map(_is_entry, content.items())):
        raise InputError(
            f"detector.weights: {path} is not a state dict (tensors by name); choose a file that "
            "was saved from model.state_dict()"
        )
    return _without_wrappers(content), classes


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrapper prefixes that all names share."""
    while (prefix := next(iter(state)).partition(".")[0]) in WRAPPERS:
        if not all(name.startswith(f"{prefix}.") for name in state):
            break
        state = {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items()}
    return dict(state)


def _is_entry(entry: tuple[Any, Any]) -> bool:
    name, tensor = entry
    return isinstance(name, str) and isinstance(tensor, Tensor) and not tensor.is_meta


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
