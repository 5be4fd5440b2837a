"""Files of weights: read without running anything that is inside them, or fetched."""

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

# Data parallelism, torch.compile, and trainers that keep the model as an attribute.
WRAPPERS = ("module", "_orig_mod", "model")
ARCHIVE = b"PK\3\4"  # how a file begins that torch reads as a zip archive


@dataclass(frozen=True)
class StoredWeights:
    """What a file holds.

    Attributes:
        source: what messages call it.
        state: tensors by name.
        classes: the class names of a checkpoint or an exported file of ours (without background),
            else None.
        config: the whole config of a checkpoint of ours, as plain values; nothing of it is checked.
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
        InputError: no such file, damaged, not made of tensors.
    """
    if not path.is_file():
        raise InputError(
            f"detector.weights: there is no file {path}; choose imagenet, coco, none or a file"
        )
    content = _read(path)
    config = content.get("config") if isinstance(content, dict) else None
    return StoredWeights(str(path), *_unwrap(content, path), config)


def fetch_weights(url: str) -> StoredWeights:
    """torchvision's weights from its cache, or else by its own download with a checked hash.

    Raises:
        InputError: it cannot be had; the message names the file and where to put it.
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
                f"detector.weights: cannot fetch {url} ({_one_line(error)}); put the file {name} "
                f"at {path}, or set detector.weights to another file or none"
            ) from error
    return read_weights(path)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if (fault := _archive_fault(path)) is not None:
            raise InputError(
                f"detector.weights: {path} is {fault}; fetch it again or choose another file"
            )
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"detector.weights: {path} is refused: {refused_content(error)}; "
            "save the state dict alone, or choose another file"
        ) from None
    except Exception as error:  # a damaged or malicious file makes the readers raise anything
        raise InputError(
            f"detector.weights: {path} is damaged or holds more than tensors "
            f"({_one_line(error)}); fetch it again or choose another file"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a file, and the classes that ``scripts/export.py`` writes beside them."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    state = safetensors.torch.load_file(path, device="cpu")
    return {"detector": state, "classes": _class_names(metadata.get("classes", ""))}


def _class_names(text: str) -> list[str] | None:
    """A JSON list of texts; None for whatever else other programs write under that name."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_list_of_texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list_of_texts else None


def refused_content(error: pickle.UnpicklingError) -> str:
    """Why torch would not unpickle a file, without its advice to unpickle it all the same."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it holds more than tensors ({found[1]})" if found else "it is damaged, or no such file"


def _archive_fault(path: Path) -> str | None:
    """What is wrong with a file that torch would read as an archive; it reads pickles as well."""
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
    """The names as the model itself has them, where all of them begin with a wrapper's."""
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
