"""Files that a program is asked to write: each a file of its own, and none that is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.errors import InputError
from engine.process.atomic_file import is_stream

Named = str | Path | None
# Folders of a dataset in which nobody keeps results.
DATA_FOLDERS = {"annotations", "Annotations", "ImageSets", "JPEGImages"}


def check_outputs(
    outputs: Sequence[Named],
    inputs: Iterable[Named],
    data_root: Path | None = None,
    pictures: Iterable[str] = (),
    folders: Sequence[Named] = (),
) -> None:
    """Raise InputError for an output that would take the place of an input, or of another output.

    And for one that cannot be written.

    Args:
        outputs: files; None for those that were not asked for.
        inputs: files, and folders whose files are read.
        data_root: of a dataset, whose annotations are read, too.
        pictures: those of it that are, relative to its root.
        folders: outputs that are folders of files.
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
    read = {_identity(file) for path in inputs if existing for file in _files_of(path)}
    for output in existing:
        is_data = data_root is not None and _is_of_data(output, data_root, pictures)
        if is_data or _identity(output) in read:
            raise InputError(f"{output}: is an input and would be overwritten; choose another")


def _check_writable(output: Path, is_folder: bool) -> None:
    """Raise InputError where the folder that an output will be written into does not allow it."""
    above = output.absolute().parents
    places = [output.absolute(), *above] if is_folder else above
    folder = next(place for place in places if place.exists())
    if not folder.is_dir():
        raise InputError(f"{output}: cannot be written: {folder} is not a folder; choose another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{output}: cannot be written: {folder} is not writable; choose another")


def _files_of(path: Named) -> Iterator[Path]:
    """What is there of an input: a file, or a folder and what it holds."""
    if path is not None and os.path.exists(path):
        yield Path(path)
        if os.path.isdir(path):
            files = (Path(path, name) for name in os.listdir(path))
            yield from (file for file in files if os.path.exists(file))


def _identity(path: Path) -> tuple[int, int]:
    """What names of one file share, links of either kind."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_of_data(output: Path, root: Path, pictures: Iterable[str]) -> bool:
    """Whether a file lies where a dataset has its annotations, or is one of its pictures."""
    place, real_root = Path(os.path.realpath(output)), Path(os.path.realpath(root))
    if not place.is_relative_to(real_root):
        return False
    inside = place.relative_to(real_root)
    return bool(DATA_FOLDERS & set(inside.parts[:-1])) or inside.as_posix() in pictures
