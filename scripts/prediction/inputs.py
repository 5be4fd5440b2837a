"""What a detector is to look at: image files, folders, globs and videos, opened one by one."""

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
        inside: its path below the folder that was named; its name where a file was named.
    """

    path: Path
    inside: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS

    @property
    def name(self) -> str:
        """What comp4 files call the image: its path without the ending."""
        return self.inside.with_suffix("").as_posix()


def find_sources(inputs: Sequence[str], output: Path | None = None) -> list[Source]:
    """The files behind names of files, folders (with the folders below them) and globs, in order.

    Args:
        output: a folder whose files are left out where a folder that leads to it is named: what an
            earlier run has drawn is no input of the next one.

    Raises:
        InputError: there is nothing under a name, or one is not UTF-8.
    """
    sources = [source for name in inputs for source in _behind(name, output)]
    for path in [*(source.path for source in sources), *([output] if output else [])]:
        _check_name(path)
    # By the folder and not by the file: stores that keep one of equal files have links to it.
    places = {(source.path.parent.resolve(), source.path.name): source for source in sources}
    return list(places.values())


def _check_name(path: Path) -> None:
    """Refuse what no result file could hold, and what OpenCV's videos crash on."""
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
            f"{name}: there is no such file or folder, and as a pattern it matches no image or "
            "video"
        )
    return found


def _in_folder(path: Path, output: Path | None, required: bool) -> list[Source]:
    inside = [file.relative_to(path) for file in sorted(_files_in(path)) if _is_known(file)]
    drawn = _drawn_below(path, output)
    kept = [file for file in inside if drawn not in (path / file).resolve().parents]
    if required and not kept:
        beside = f" beside those of --output {output}" if inside else ""
        raise InputError(f"{path}: the folder holds no images or videos ({_endings()}){beside}")
    return [Source(path / file, file) for file in kept]


def _files_in(folder: Path) -> Iterator[Path]:
    """All files, also behind links to folders, but each folder once and nothing that is hidden."""
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
    """The output, links resolved; None where it is the folder itself or around it."""
    return None if output is None or _is_around(output, folder) else output.resolve()


def _is_around(output: Path | None, folder: Path) -> bool:
    """Whether an output is a folder itself, or one that it lies in; links are resolved."""
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
        frames: how many its header promises, 0 where it does not say. A header may count frames
            that are not shown (of a video that was trimmed without being encoded again), or
            estimate; fewer are a sign of damage, no proof.
        rate: frames a second.
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
        """Whether so many decoded frames are clearly fewer than its header promises."""
        return self.frames - decoded > max(2, self.frames // 50)


def open_video(path: Path) -> Video:
    """Open a video.

    Raises:
        DamagedImageError: it cannot be decoded here.
    """
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise damaged_video(path, "cannot be read as a video")
    frames = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    return Video(path, capture, frames, capture.get(cv2.CAP_PROP_FPS) or 25.0)


def damaged_video(path: Path, complaint: str) -> DamagedImageError:
    """What to raise for a video that cannot be decoded."""
    return damaged(path, complaint, "convert it to H.264 in .mp4")
