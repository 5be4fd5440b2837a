"""Unpack archives: only regular files, only below the folder, no implausible sizes."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from data.errors import InputError, shown
from data.paths import inner_path
from scripts.dataset_tools.progress import progress

_MOST_GROWTH = 20  # bytes unpacked for one packed; COCO's annotations have 5
_ALWAYS_ALLOWED = 1 << 26
_COPY_AT_ONCE = 1 << 20
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path) -> int:
    """Unpack a .tar (also compressed) or .zip; return the number of files.

    All names are checked before the first file is written. An existing file of the right size is
    kept, so that an interrupted call can be repeated; each file is renamed once it is complete.

    Raises:
        InputError: the archive is missing or damaged, or has links, special files, paths out of the
            folder or an implausible size.
    """
    try:
        with _members(archive) as members:
            _check_growth(archive, members)
            for member in progress(members, f"unpack {archive.name}"):
                _write(member, folder, archive)
            return len(members)
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{archive}: is damaged ({reason}); delete it and download it again"
        ) from None
    except OSError as error:
        raise InputError(
            f"{archive}: cannot be unpacked into {folder} ({error.strerror or error}); check the "
            "disk and its permissions"
        ) from None


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield list(_zip_members(file, archive))
    else:
        with tarfile.open(archive) as tar:
            yield list(_tar_members(tar, archive))


def _zip_members(file: zipfile.ZipFile, archive: Path) -> Iterator[_Member]:
    for entry in file.infolist():
        name = inner_path(entry.filename, f"{archive}: a member")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, name)
        if entry.flag_bits & 1:
            raise InputError(f"{archive}: {shown(name)} is encrypted; unpack the archive yourself")
        if not entry.is_dir():
            yield _Member(name, entry.file_size, partial(file.open, entry))


def _tar_members(tar: tarfile.TarFile, archive: Path) -> Iterator[_Member]:
    for entry in tar:
        name = inner_path(entry.name, f"{archive}: a member")
        if entry.isfile():
            yield _Member(name, entry.size, partial(_open_entry, tar, entry))
        elif not entry.isdir():
            raise _refused(archive, name)


def _open_entry(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(entry)
    if file is None:
        raise tarfile.TarError(f"{entry.name} has no content")
    return file


def _refused(archive: Path, name: str) -> InputError:
    return InputError(
        f"{archive}: {shown(name)} is a link or special file, which is not allowed; get the "
        "archive from its publisher"
    )


def _check_growth(archive: Path, members: list[_Member]) -> None:
    total = sum(member.size for member in members)
    if total > max(_ALWAYS_ALLOWED, _MOST_GROWTH * archive.stat().st_size):
        raise InputError(
            f"{archive}: would unpack to {total / 1e9:.1f} GB, more than {_MOST_GROWTH} times its "
            "size; get the archive from its publisher"
        )


def _write(member: _Member, folder: Path, archive: Path) -> None:
    path = folder / member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    real_folder, real_parent = os.path.realpath(folder), os.path.realpath(path.parent)
    if os.path.commonpath([real_folder, real_parent]) != real_folder or path.is_symlink():
        raise InputError(
            f"{archive}: {shown(member.name)} would be written through a link to {real_parent}; "
            f"remove the link in {folder}"
        )
    if path.is_file() and path.stat().st_size == member.size:
        return
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.unlink(missing_ok=True)
    with member.open() as source, unfinished.open("xb") as target:
        shutil.copyfileobj(source, target, _COPY_AT_ONCE)
    os.replace(unfinished, path)
