"""Folders that appear finished or not at all, and the images that go into them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from data.errors import InputError, unreadable


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill under another name; it is renamed to ``path`` when all went well.

    Raises InputError where ``path`` exists and is not empty, or cannot be written, and for a file
    that cannot be read meanwhile.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists already; name a new folder")
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        if path.exists():
            path.rmdir()
        os.rename(unfinished, path)
    except OSError as error:
        if _is_of_reading(error, (path, unfinished)):
            raise unreadable(error.filename, error) from error
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); name another folder"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_of_reading(error: OSError, written: Iterable[Path]) -> bool:
    """Whether it names one file that is not written; a full disk names two files, or none."""
    if not isinstance(error.filename, str | os.PathLike) or error.filename2 is not None:
        return False
    named = Path(error.filename)
    return not any(own.is_relative_to(named) or named.is_relative_to(own) for own in written)


def copy_files(pairs: Iterable[tuple[Path, Path]], hardlink: bool) -> int:
    """Copy (or link) files to places whose folders are made; missing ones are left out.

    Returns the number of files that were missing.
    """
    missing = 0
    for source, target in tqdm(list(pairs), desc="images", delay=2, leave=False, disable=None):
        if not source.is_file():
            missing += 1
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(source, target, hardlink)
    return missing


def _copy(source: Path, target: Path, hardlink: bool) -> None:
    if hardlink:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:
            pass  # another disk, or one without links
    shutil.copy2(source, target)
