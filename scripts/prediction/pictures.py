"""Writers of images and videos."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import cv2

from data.errors import InputError
from data.images import Pixels
from engine.process.atomic_file import write_atomically

JPEG_QUALITY = 92


def picture_path(path: Path) -> Path:
    """Return a path with a JPEG or PNG extension; .png is appended to others."""
    if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
        return path
    return path.with_name(f"{path.name}.png")


def write_picture(path: Path, picture: Pixels) -> None:
    """Write an ``(H, W, 3)`` RGB image as JPEG or PNG, by the extension of its ``picture_path``.

    Raises:
        InputError: it cannot be written.
    """
    path = picture_path(path)
    is_jpeg = path.suffix.lower() != ".png"
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if is_jpeg else []
    colors = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(path.suffix.lower(), colors, options)
    if not done:
        height, width = picture.shape[:2]
        raise InputError(
            f"{path}: an image of {width}x{height} is too large for its format; convert it to PNG"
        )
    write_atomically(path, encoded.tobytes())


class VideoWriter:
    """Write frames into an .mp4, which appears once all of them are written.

    Leaving the block raises InputError if frames are missing in the file, as on a full disk, which
    the encoder itself does not report. It crops the last column or row of an odd width or height.

    Args:
        path: the file; None writes nothing.
        rate: frames per second.
    """

    def __init__(self, path: Path | None, rate: float) -> None:
        self.path = path
        self.rate = rate
        self.frames = 0
        self.writer: cv2.VideoWriter | None = None
        self.part = None if path is None else path.with_name(f".{path.stem}.part.mp4")

    def write(self, frame: Pixels) -> None:
        """Append an ``(H, W, 3)`` RGB frame; all have the size of the first.

        Raises:
            InputError: the file cannot be written.
        """
        if self.writer is None:
            self.writer = self._open((frame.shape[1], frame.shape[0]))
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter:
        assert self.part is not None
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}") from None
        code = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(self.part), code, self.rate, size)
        if not writer.isOpened():
            raise InputError(f"{self.path}: cannot be written as a video; choose another --output")
        return writer

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.writer is None:
            return
        self.writer.release()
        assert self.part is not None
        assert self.path is not None
        try:
            if kind is None:
                _check_frames(self.part, self.path, self.frames)
                self.part.replace(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}") from None
        finally:
            self.part.unlink(missing_ok=True)


def _check_frames(part: Path, path: Path, frames: int) -> None:
    """Check by its index, which is written last, that a video is complete."""
    written = int(cv2.VideoCapture(str(part)).get(cv2.CAP_PROP_FRAME_COUNT))
    if written < frames:
        raise InputError(
            f"{path}: cannot be written: only {max(0, written)} of {frames} frames are in the "
            "file; free disk space, or choose another --output"
        )
