"""Check output files: each a separate file, and none that is also an input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.errors import InputError
from engine.process.atomic_file import is_stream

Named = str | Path | None
# Folders of a dataset that never hold results.
DATA_FOLDERS = {"annotations", "Annotations", "ImageSets", "JPEGImages"}


def check_outputs(
    outputs: Sequence[Named],
    inputs: Iterable[Named],
    data_root: Path | None = None,
    pictures: Iterable[str] = (),
    folders: Sequence[Named] = (),
) -> None:
    """Check that outputs can be written and overwrite neither inputs nor each other.

    Args:
        outputs: output files; None for those not requested.
        inputs: input files, and folders whose files are inputs.
        data_root: root of a dataset whose annotations are inputs too.
        pictures: its images that are inputs, relative to its root.
        folders: output folders; None for those not requested.

    Raises:
        InputError: an output cannot be written, or would overwrite an input or another output.
    """
    named = [Path(output) for output in outputs if output is not None]
    named_folders = [Path(output) for output in folders if output is not None]
    for output in named:
        if os.path.isdir(output):
            raise InputError(f"{output}: is a folder; give a file")
    for output in named_folders:
        if os.path.exists(output) and not os.path.isdir(output):
            raise InputError(f"{output}: is a file; give a folder")
    files = [output for output in (*named, *named_folders) if not is_stream(output)]
    for output in files:
        _check_writable(output, is_folder=output in named_folders)
    places: set[str] = set()
    for output in files:
        place = os.path.realpath(output)
        if place in places:
            raise InputError(f"{output}: is given for two outputs; choose another")
        places.add(place)
    existing = [output for output in files if os.path.exists(output)]
    read = {_identity(file) for path in inputs if existing for file in _existing_files(path)}
    for output in existing:
        is_data = data_root is not None and _is_dataset_file(output, data_root, pictures)
        if is_data or _identity(output) in read:
            raise InputError(f"{output}: is an input and would be overwritten; choose another")


def _check_writable(output: Path, is_folder: bool) -> None:
    """Raise InputError if the folder of an output is not a writable folder."""
    above = output.absolute().parents
    places = [output.absolute(), *above] if is_folder else above
    folder = next(place for place in places if place.exists())
    if not folder.is_dir():
        raise InputError(f"{output}: cannot be written: {folder} is not a folder; choose another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{output}: cannot be written: {folder} is not writable; choose another")


def _existing_files(path: Named) -> Iterator[Path]:
    """Yield the existing files of an input: a file, or a folder and its contents."""
    if path is not None and os.path.exists(path):
        yield Path(path)
        if os.path.isdir(path):
            files = (Path(path, name) for name in os.listdir(path))
            yield from (file for file in files if os.path.exists(file))


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode of a file, shared by all its hard and symbolic links."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_dataset_file(output: Path, root: Path, pictures: Iterable[str]) -> bool:
    """Whether a file is in an annotation folder of a dataset or is one of its images."""
    place, real_root = Path(os.path.realpath(output)), Path(os.path.realpath(root))
    if not place.is_relative_to(real_root):
        return False
    inside = place.relative_to(real_root)
    return bool(DATA_FOLDERS & set(inside.parts[:-1])) or inside.as_posix() in pictures
