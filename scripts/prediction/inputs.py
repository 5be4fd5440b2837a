"""Inputs of a detector: image files, folders, globs and videos, opened one by one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.errors import InputError
from data.images import DamagedImageError, Pixels, damaged

IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


@dataclass(frozen=True)
class Source:
    """An image file, or a video.

    Attributes:
        path: the file.
        inside: its path relative to the given folder; its name where a file was given.
    """

    path: Path
    inside: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS

    @property
    def name(self) -> str:
        """The image's name in comp4 files: its path without the extension."""
        return self.inside.with_suffix("").as_posix()


def find_sources(inputs: Sequence[str], output: Path | None = None) -> list[Source]:
    """Find the files of file names, folders (searched recursively) and globs, in order.

    Args:
        output: a folder whose files are skipped if an input folder contains it: what an earlier run
            has drawn is not an input of the next one.

    Raises:
        InputError: an input is not found, or its name is not UTF-8.
    """
    sources = [source for name in inputs for source in _behind(name, output)]
    for path in [*(source.path for source in sources), *([output] if output else [])]:
        _check_name(path)
    # By the folder and not by the file: stores that keep one of equal files have links to it.
    places = {(source.path.parent.resolve(), source.path.name): source for source in sources}
    return list(places.values())


def _check_name(path: Path) -> None:
    """Refuse names that no result file can hold and that crash OpenCV's video reader."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{str(path)!r}: the name is not UTF-8; rename it") from None


def _behind(name: str, output: Path | None) -> list[Source]:
    path = Path(name)
    if path.is_file():
        return [Source(path, Path(path.name))]
    if path.is_dir():
        return _in_folder(path, output, required=True)
    found: list[Source] = []
    for match in map(Path, sorted(glob.glob(name, recursive=True))):
        # With ** the files of a folder match, too.
        if match.is_dir() and "**" not in name and not _is_around(output, match):
            found += _in_folder(match, output, required=False)
        elif _is_known(match):
            found.append(Source(match, Path(match.name)))
    if not found:
        raise InputError(
            f"{name}: file or folder not found, and as a pattern it matches no image or video; "
            "check the path"
        )
    return found


def _in_folder(path: Path, output: Path | None, required: bool) -> list[Source]:
    inside = [file.relative_to(path) for file in sorted(_files_in(path)) if _is_known(file)]
    drawn = _drawn_below(path, output)
    kept = [file for file in inside if drawn not in (path / file).resolve().parents]
    if required and not kept:
        beside = f" other than those in --output {output}" if inside else ""
        raise InputError(f"{path}: the folder has no images or videos ({_endings()}){beside}")
    return [Source(path / file, file) for file in kept]


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield all files, following links to folders; each folder once, hidden names skipped."""
    entered, waiting = set(), [str(folder)]
    while waiting:  # the links last: a folder has its own name, not that of a link to it
        for place, folders, files in os.walk(waiting.pop(0)):
            real = os.path.realpath(place)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            inside = [os.path.join(place, name) for name in folders]
            waiting += [path for path in inside if os.path.islink(path)]
            yield from (Path(place, name) for name in files if not name.startswith("."))


def _drawn_below(folder: Path, output: Path | None) -> Path | None:
    """Return the output, links resolved; None if it is the folder itself or contains it."""
    return None if output is None or _is_around(output, folder) else output.resolve()


def _is_around(output: Path | None, folder: Path) -> bool:
    """Return whether the output is the folder or contains it, with links resolved."""
    if output is None:
        return False
    return output.resolve() in (folder.resolve(), *folder.resolve().parents)


def _is_known(file: Path) -> bool:
    return file.suffix.lower() in IMAGES + VIDEOS and file.is_file()


def _endings() -> str:
    return ", ".join(ending[1:] for ending in IMAGES + VIDEOS)


@dataclass(frozen=True)
class Video:
    """An opened video.

    Attributes:
        frames: the number in its header, 0 if absent. A header may count frames that are not shown
            (in a video trimmed without re-encoding), or estimate; fewer frames are a sign of
            damage, not proof.
        rate: frames per second.
    """

    path: Path
    capture: cv2.VideoCapture
    frames: int
    rate: float

    def __iter__(self) -> Iterator[Pixels]:
        """The frames, ``(H, W, 3)`` uint8 RGB."""
        while True:
            there_is_one, frame = self.capture.read()
            if not there_is_one:
                self.capture.release()
                return
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)

    def lacks(self, decoded: int) -> bool:
        """Return whether ``decoded`` is clearly fewer frames than its header says."""
        return self.frames - decoded > max(2, self.frames // 50)


def open_video(path: Path) -> Video:
    """Open a video.

    Raises:
        DamagedImageError: it cannot be decoded.
    """
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise damaged_video(path, "cannot be read as a video")
    frames = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    return Video(path, capture, frames, capture.get(cv2.CAP_PROP_FPS) or 25.0)


def damaged_video(path: Path, complaint: str) -> DamagedImageError:
    """Return the error to raise for a video that cannot be decoded."""
    return damaged(path, complaint, "convert it to H.264 in .mp4")
