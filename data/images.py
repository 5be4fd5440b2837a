"""Decoding image files to RGB arrays, and resizing them.

Every image becomes ``(height, width, 3)`` uint8 RGB, however it is stored: gray is repeated, alpha
is dropped, CMYK is converted, 16 bits are cut to the upper 8, the first frame of an animation is
used, and the EXIF orientation is applied unless it is to be ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from data.errors import InputError, unreadable

Pixels = npt.NDArray[np.uint8]

# The only formats that are read, by their first bytes. Pillow parses their headers (given the
# choice, it would also open formats that run other programs), OpenCV decodes their pixels (Pillow
# those of many TIFFs, see _needs_pillow).
_FORMATS: tuple[tuple[bytes, Callable[[BytesIO], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
    (b"RIFF", WebPImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
)
_JPEG_START_OF_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_PNG_END = b"IEND\xaeB`\x82"
# Text chunks and color profiles; Pillow refuses large ones, and nothing here reads them.
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
_TIFF_BITS = 258
# Pillow's names of the compressions with which damage is detected: all of LZW, much of deflate.
_TIFF_CHECKED = {"tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"}
_EXIF_ORIENTATION = 0x0112
# EXIF orientations 1 to 8: whether the image is transposed, then flipped left-right, up-down.
_TRANSPOSED, _FLIPPED_LEFT_RIGHT, _FLIPPED_UP_DOWN = {5, 6, 7, 8}, {2, 3, 6, 7}, {3, 4, 7, 8}
# cv2's linear filter reads 2 x 2 pixels: below half the size it would skip some of them.
_AREA_BELOW_SCALE = 0.5


class DamagedImageError(InputError):
    """An image file whose pixels cannot be decoded: empty, truncated, or not an image.

    Attributes:
        complaint: the message without the cure.
    """

    complaint = ""


def read_image(
    path: Path, size_hw: tuple[int, int] | None, max_pixels: int, ignore_exif: bool = False
) -> Pixels:
    """Decode an image file to ``(H, W, 3)`` uint8 RGB.

    Args:
        path: the file.
        size_hw: annotated height and width, or None to accept any size. If they are those of the
            stored pixels, the image was annotated unrotated, and the EXIF rotation is not applied.
        max_pixels: larger images are refused by their header, before memory is allocated.
        ignore_exif: never apply the EXIF orientation.

    Raises:
        DamagedImageError: the file is not an image, or is damaged or truncated.
        InputError: the image is missing, too large, or not of the annotated size.
    """
    raw = _read_bytes(path)
    header = _read_header(path, raw)
    width, height = header.size
    if width * height > max_pixels:
        raise InputError(
            f"{path}: {width}x{height} pixels are more than data.max_image_pixels={max_pixels}; "
            "split the image into tiles, or raise the limit"
        )
    orientation = _orientation_to_apply(path, header, size_hw, ignore_exif)
    _check_complete(path, raw)
    image = _decode(raw, header)
    if image is None or image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise damaged(path, "its pixels cannot be decoded")
    return _orient(np.ascontiguousarray(image, np.uint8), orientation)


def _decode(raw: bytes, header: ImageFile.ImageFile) -> npt.NDArray[Any] | None:
    """Decode the stored pixels; None if that fails."""
    try:
        if isinstance(header, TiffImageFile) and _needs_pillow(header):
            return np.asarray(header.convert("RGB"))
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        return cv2.imdecode(np.frombuffer(raw, np.uint8), flags)
    except Exception:  # cv2.error, and whatever Pillow raises
        return None


def _needs_pillow(header: TiffImageFile) -> bool:
    """Return whether Pillow must decode a TIFF.

    OpenCV multiplies alpha into the colors, and silently fills what it cannot unpack. Pillow, on
    the other hand, does not read all 16-bit layouts.
    """
    eight_bits = set(header.tag_v2.get(_TIFF_BITS, ())) == {8}
    checked = eight_bits and header.info.get("compression") in _TIFF_CHECKED
    return header.mode == "RGBA" or (checked and header.mode in ("L", "RGB", "P"))


def read_orientation(path: Path) -> tuple[int, tuple[int, int]]:
    """Read an image's EXIF orientation, 1 to 8, and its stored height and width.

    Raises:
        DamagedImageError: the file is not an image.
    """
    header = _read_header(path, _read_bytes(path))
    return _exif_orientation(header), (header.height, header.width)


def damaged(path: Path, complaint: str, cure: str = "replace the file") -> DamagedImageError:
    """Build the error for a file whose pixels cannot be decoded."""
    text = f"{path}: {complaint}"
    error = DamagedImageError(f"{text}; {cure}, or set data.on_damaged: skip")
    error.complaint = text
    return error


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    if not raw:
        raise damaged(path, "the image file is empty")
    return raw


def _read_header(path: Path, raw: bytes) -> ImageFile.ImageFile:
    for magic, parse in _FORMATS:
        if raw.startswith(magic):
            try:
                header = parse(BytesIO(_png_head(raw) if parse is PngImageFile else raw))
            except Exception as error:  # Pillow raises nearly every type on hostile bytes
                if "unknown pixel mode" in str(error):
                    raise _unread_pixels(path) from None
                raise damaged(path, "the image's header is damaged") from None
            if isinstance(header, TiffImageFile) and header.tag_v2.get(_TIFF_BITS) == (32,):
                raise _unread_pixels(path)
            return header
    raise damaged(path, "is not a JPEG, PNG, GIF, BMP, WebP or TIFF image")


def _unread_pixels(path: Path) -> DamagedImageError:
    kind = "its pixel format is not supported, such as 32 bits or floats"
    return damaged(path, kind, "save it as 8 or 16 bit RGB or grayscale")


def _png_head(raw: bytes) -> bytes:
    """Return the start of a PNG up to its pixels, without text chunks and color profiles."""
    kept, position = [raw[:8]], 8
    while (kind := raw[position + 4 : position + 8]) not in (b"IDAT", b""):
        end = position + 12 + int.from_bytes(raw[position : position + 4], "big")
        kept += [] if kind in _PNG_TEXTS else [raw[position:end]]
        position = end
    return b"".join([*kept, raw[position : position + 8]])


def _orientation_to_apply(
    path: Path,
    header: ImageFile.ImageFile,
    size_hw: tuple[int, int] | None,
    ignore_exif: bool,
) -> int:
    """Return the EXIF orientation to apply (1: none) to get the annotated size."""
    stored = (header.height, header.width)
    orientation = _exif_orientation(header)
    if orientation != 1 and isinstance(header, TiffImageFile):  # OpenCV would rotate it unasked
        raise InputError(f"{path}: is a TIFF with a rotation flag; save it upright, as PNG")
    upright = stored[::-1] if orientation in _TRANSPOSED else stored
    shown = stored if ignore_exif else upright
    if size_hw is None or tuple(size_hw) == shown:
        return 1 if ignore_exif else orientation
    if tuple(size_hw) == stored:
        return 1
    cure = "correct the annotation, whose boxes do not fit this image"
    if tuple(size_hw) == upright:
        cure = "that is the size of the upright image: set data.exif: apply"
    raise InputError(
        f"{path}: the image is {shown[1]}x{shown[0]} (width x height) but its annotation says "
        f"{size_hw[1]}x{size_hw[0]}; {cure}"
    )


def _exif_orientation(header: ImageFile.ImageFile) -> int:
    if "exif" not in header.info and not isinstance(header, TiffImageFile):
        return 1
    try:
        orientation = header.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block must not make the image unusable
        return 1
    return orientation if orientation in range(1, 9) else 1


def _check_complete(path: Path, raw: bytes) -> None:
    """Check for the end marker of a JPEG or PNG, because decoders fill missing pixels with gray.

    Other data may follow the marker (phones append some), so it is searched for if the file does
    not end with it.
    """
    if raw.startswith(_FORMATS[0][0]):
        complete = raw.endswith(_JPEG_END) or _JPEG_END in raw[_first_scan(raw) :]
    elif raw.startswith(_FORMATS[1][0]):
        complete = _PNG_END in raw
    else:
        return  # OpenCV refuses truncated files of the other formats
    if not complete:
        raise damaged(path, f"the image is truncated after {len(raw)} bytes")


def _first_scan(raw: bytes) -> int:
    """Find where a JPEG's pixels begin: an end marker before that belongs to a thumbnail."""
    position = 2
    while raw[position : position + 2] != _JPEG_START_OF_SCAN and position < len(raw):
        if raw[position + 1 : position + 2] == b"\xff":  # a fill byte before the marker
            position += 1
            continue
        length = int.from_bytes(raw[position + 2 : position + 4], "big")
        position += 2 + max(length, 2)
    return position


def _orient(image: Pixels, orientation: int) -> Pixels:
    if orientation == 1:
        return image
    if orientation in _TRANSPOSED:
        image = image.swapaxes(0, 1)
    if orientation in _FLIPPED_LEFT_RIGHT:
        image = image[:, ::-1]
    if orientation in _FLIPPED_UP_DOWN:
        image = image[::-1]
    return np.ascontiguousarray(image)


def resized_size(size_hw: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width after resizing to ``image_size``: (short side, maximum long side).

    The scale is the largest at which neither side exceeds its bound, as in torchvision's transform;
    the result is rounded to the nearest pixel (mmdetection, the paper's toolbox) where torchvision
    rounds down.

    >>> resized_size((480, 640), (600, 1000)), resized_size((10000, 30), (600, 1000))
    ((600, 800), (1000, 3))
    """
    height, width = size_hw
    scale = min(image_size[0] / min(height, width), image_size[1] / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_image(image: Pixels, size_hw: tuple[int, int]) -> Pixels:
    """Resize ``(H, W, 3)`` -> ``(*size_hw, 3)``, in training and evaluation alike.

    Bilinear without antialiasing (cv2.INTER_LINEAR), or pixel averages (cv2.INTER_AREA) below half
    the size, where bilinear interpolation would skip pixels.
    """
    height, width = size_hw
    if image.shape[:2] == size_hw:
        return image
    shrinks = min(height / image.shape[0], width / image.shape[1]) < _AREA_BELOW_SCALE
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def resize_masks(masks: Pixels, size_hw: tuple[int, int]) -> Pixels:
    """Resize ``(N, H, W)`` of 0 and 1 -> ``(N, *size_hw)`` by nearest neighbor.

    An object that contains no pixel center keeps the pixel that it covers most, because an empty
    mask would contradict its box.
    """
    height, width = size_hw
    if masks.shape[1:] == size_hw:
        return masks
    resized = np.empty((len(masks), height, width), np.uint8)
    for mask, target in zip(masks, resized, strict=True):
        cv2.resize(mask, (width, height), dst=target, interpolation=cv2.INTER_NEAREST_EXACT)
        if not target.any():
            share = cv2.resize(
                mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
            )
            target.flat[share.argmax()] = share.max() > 0
    return resized
