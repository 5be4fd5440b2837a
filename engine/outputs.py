"""Files that a program is asked to write: each a file of its own, and none that is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.errors import InputError
from data.voc_images import has_image_ending
from engine.atomic_file import is_stream

Named = str | Path | None
# Folders of a dataset in which nobody keeps results.
DATA_FOLDERS = {"annotations", "Annotations", "ImageSets", "JPEGImages"}


def check_outputs(
    outputs: Sequence[Named], inputs: Iterable[Named], data_root: Path | None = None
) -> None:
    """Raise InputError for an output that would take the place of an input, or of another output.

    Args:
        outputs: files; None for those that were not asked for.
        inputs: files, and folders whose files are read.
        data_root: of a dataset, whose annotations and pictures are read, too.
    """
    wanted = [Path(output) for output in outputs if output is not None]
    named = [Path(path) for path in inputs if path is not None]
    read = [path for path in named if path.exists()]
    for number, output in enumerate(wanted):
        if is_stream(output):
            continue
        if any(_same_place(output, other) for other in wanted[:number]):
            raise InputError(f"{output}: is named for two outputs; name another")
        if not output.exists():
            continue
        if any(_is_among(output, path) for path in read) or (
            data_root is not None and _is_of_data(output, data_root)
        ):
            raise InputError(f"{output}: is read here and would be replaced; name another")


def _same_place(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _is_among(output: Path, path: Path) -> bool:
    files = (path, *path.glob("*")) if path.is_dir() else (path,)
    return any(os.path.exists(file) and os.path.samefile(output, file) for file in files)


def _is_of_data(output: Path, root: Path) -> bool:
    """Whether a file lies where a dataset has its annotations or pictures."""
    place, real_root = Path(os.path.realpath(output)), Path(os.path.realpath(root))
    if not place.is_relative_to(real_root):
        return False
    folders = place.relative_to(real_root).parts[:-1]
    return bool(DATA_FOLDERS & set(folders)) or (bool(folders) and has_image_ending(place.name))
