"""Output folders that are written completely or not at all, and copying images into them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import InputError, unreadable
from data.paths import check_inside
from engine.process.locks import try_lock
from scripts.dataset_tools.progress import progress


def check_output(dataset: Path, output: Path) -> None:
    """Check before long work that ``new_folder`` accepts an output outside the dataset.

    Raises:
        InputError: the output exists, cannot be written, or lies in the dataset.
    """
    with writing(output):
        _check_new(output)
    check_place(output)
    if dataset.resolve() in output.resolve().parents:
        raise InputError(f"{output}: is inside the dataset {dataset}; choose a folder outside")


def check_place(path: Path) -> None:
    """Check that the nearest existing parent folder is writable.

    Raises:
        InputError: it is not.
    """
    above = next(each for each in path.absolute().parents if os.path.exists(each))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "is not a folder" if not above.is_dir() else "is not writable"
        raise InputError(f"{path}: cannot be written ({above} {reason}); choose another")


def _check_new(path: Path) -> None:
    target = path.resolve()
    filled = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if filled or target == Path.cwd():  # which would be replaced under the user's feet
        raise InputError(f"{path}: already exists; choose a new folder")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it is renamed to ``path`` on success.

    Leftovers of a killed run in the temporary folder are removed.

    Raises:
        InputError: ``path`` is not empty or is the current folder, cannot be written, or is being
            written by another process; or a file cannot be read meanwhile.
    """
    target = path.resolve()
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        with _locked(unfinished, path):
            try:
                _check_new(path)
                _empty(unfinished)
                yield unfinished
                if target.exists():
                    target.rmdir()
                os.rename(unfinished, target)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
    except OSError as error:
        if _is_of_reading(error, (target, unfinished)):
            raise unreadable(error.filename, error) from error
        raise _unwritable(path, error) from error


@contextmanager
def _locked(folder: Path, path: Path) -> Iterator[None]:
    """Lock a folder; raise InputError, which names ``path``, if another process holds it."""
    # No link: what is behind it is not ours to remove.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not try_lock(descriptor):
            raise InputError(
                f"{path}: another process is writing it; wait for it, or choose another folder"
            )
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError from writing the file or folder ``path`` into an InputError."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or error
    return InputError(f"{path}: cannot be written ({reason}); choose another, or make it writable")


def _is_of_reading(error: OSError, written: Iterable[Path]) -> bool:
    """Return whether the error names one file not being written; a full disk names two or none."""
    if not isinstance(error.filename, str | os.PathLike) or error.filename2 is not None:
        return False
    named = Path(error.filename)
    return not any(own.is_relative_to(named) or named.is_relative_to(own) for own in written)


def copy_files(
    pairs: Iterable[tuple[Path, Path]], hardlink: bool, root: Path, follow_links: bool
) -> int:
    """Copy (or hard-link) files, creating their folders; missing files are skipped.

    Returns:
        The number of missing files.

    Raises:
        InputError: a file is a link to outside ``root``, unless ``follow_links``.
    """
    missing = 0
    for source, target in progress(list(pairs), "images"):
        if not os.path.isfile(source):
            missing += 1
        elif not target.exists():
            if not follow_links:
                _refuse_link(source, root)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(source, target, hardlink)
    return missing


def _refuse_link(source: Path, root: Path) -> None:
    try:
        check_inside(root, source, str(root))
    except InputError as error:
        raise InputError(f"{error}; here: --follow-links") from None


def _copy(source: Path, target: Path, hardlink: bool) -> None:
    if hardlink:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:
            pass  # another disk, or one without links
    shutil.copy2(source, target)
