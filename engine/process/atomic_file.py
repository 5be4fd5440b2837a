"""Atomic file writes: a file is complete or unchanged."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import InputError


def write_atomically(
    path: str | Path, data: bytes | memoryview, previous: Path | None = None
) -> None:
    """Write a temporary file, sync it to disk and rename it; a crash leaves the old file unchanged.

    Missing parent folders are created. A device, a pipe or ``/dev/stdout`` is written to directly:
    a rename would replace it with a file.

    Args:
        path: the file to write.
        data: its contents.
        previous: new name of an existing file at ``path``; None replaces it.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with _input_errors(path):
        if is_stream(path):
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if previous not in (None, path) and path.exists():
                link_atomically(path, previous)


def link_atomically(path: Path, other: Path) -> None:
    """Make ``other`` a hard link to a file, or a copy if the file system has no hard links.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    with _input_errors(other), _replacing(other) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # network drives, FAT, another disk
            shutil.copyfile(path, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())


def remove_unfinished(path: Path) -> None:
    """Remove half-written temporary files that killed processes left beside a path.

    No other process may be writing the file: its temporary file would be removed too.

    Raises:
        InputError: the folder cannot be written.
    """
    with _input_errors(path):
        for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            temporary.unlink(missing_ok=True)


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe or the like, which must not be replaced by a file."""
    if os.path.islink(path) and os.readlink(path).startswith("/proc/"):  # /dev/stdout, /dev/fd/3
        return True
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside the path; the file made there is then renamed to the path.

    The name is unique: if two processes write the same file at once, the last one wins.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_file():  # after an error, or if both are the same file already
            temporary.unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Sync a rename to disk: the name of a file belongs to its folder, not to the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not support it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _input_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{path}: cannot be written: {reason}; free disk space, or choose another output"
        ) from error
