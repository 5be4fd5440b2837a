"""PASCAL VOC annotation files: XML to the numbers in the file, without conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data.annotations import LARGEST_COORDINATE
from data.errors import InputError, control_in, shown, unreadable

_LARGEST_FILE = 1 << 23  # bytes; VOC's own stay below 100 kB
VOC_SIDES = ("size/height", "size/width")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FALSE, _TRUE = {"", "0", "false", "no", "unspecified"}, {"1", "true", "yes"}


@dataclass(frozen=True)
class VocObject:
    """One ``<object>``: its class, ``difficult``, and (xmin, ymin, xmax, ymax) as in the file."""

    name: str
    difficult: bool
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class VocImage:
    """One ``<annotation>``; missing height and width are 0, a missing filename is None."""

    filename: str | None
    size_hw: tuple[int, int]
    objects: tuple[VocObject, ...]


def read_voc_xml(path: Path) -> VocImage:
    """Read an annotation file; an ``<object>`` only needs ``<name>`` and ``<bndbox>``.

    Raises:
        InputError: the file is not VOC XML (DTDs and entities are refused, too), a coordinate is
            not a number, or the corners of a box are swapped.
    """
    annotation = parse_voc_xml(path)
    filename = read_filename(annotation)
    sides = [read_voc_side(annotation, side, path) for side in VOC_SIDES]
    objects = tuple(
        read_voc_object(element, f"{path}: object {number}")
        for number, element in enumerate(annotation.findall("object"), start=1)
    )
    return VocImage(filename, (sides[0], sides[1]), objects)


def parse_voc_xml(path: Path) -> Element:
    """Parse an annotation file and return its root element.

    Raises:
        InputError: the file is missing, unreadable, too large, or not VOC XML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise InputError(
            f"{path}: annotation not found; add it, or remove the image from the split"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from error
    if len(text) > _LARGEST_FILE:
        raise InputError(f"{path}: has more than {_LARGEST_FILE} bytes; is it a VOC annotation?")
    try:
        annotation: Element = fromstring(text, forbid_dtd=True)
    except DefusedXmlException as error:
        raise InputError(
            f"{path}: declares a DTD or entities, which are refused; delete its <!DOCTYPE>"
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise InputError(
            f"{path}: is not valid XML ({error}); repair it or export it again"
        ) from error
    if annotation.tag != "annotation":
        raise InputError(
            f"{path}: its root is <{shown(annotation.tag)[1:-1]}>, not <annotation>; "
            "keep only VOC files in Annotations"
        )
    return annotation


def read_filename(annotation: Element) -> str | None:
    """Return ``<filename>``, or None if it is missing or empty."""
    return (annotation.findtext("filename") or "").strip() or None


def read_voc_side(annotation: Element, tag: str, path: Path) -> int:
    """Read one of ``VOC_SIDES`` in pixels, 0 if it is missing.

    Raises:
        InputError: it is not a size in pixels.
    """
    text = (annotation.findtext(tag) or "0").strip() or "0"
    value = _number(text)
    if value is None or not value.is_integer() or not 0 <= value <= LARGEST_COORDINATE:
        raise InputError(
            f"{path}: <{tag.split('/')[1]}> is {shown(text)}, not a size in pixels; correct it, "
            "or delete <size> to have it read from the image"
        )
    return int(value)


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)  # Python reads 1_5 as 15
    except ValueError:
        return None


def read_voc_object(element: Element, where: str) -> VocObject:
    """Read one ``<object>``; ``where`` is its name for messages.

    Raises:
        InputError: its name, box or ``<difficult>`` is missing or invalid.
    """
    fields = {child.tag: child for child in element}
    name = (fields["name"].text or "").strip() if "name" in fields else ""
    if not name:
        raise InputError(f"{where}: its <name> is {shown(name)}; write the name of its class")
    if control_in(name):
        raise InputError(
            f"{where}: its <name> {shown(name)} contains the control character "
            f"{shown(control_in(name))}; remove it"
        )
    where = f"{where} ({shown(name)})"
    flag = (fields["difficult"].text or "").strip().lower() if "difficult" in fields else ""
    if flag not in _TRUE and flag not in _FALSE:
        raise InputError(f"{where}: <difficult> is {shown(flag)}; write 0 or 1")
    if "bndbox" not in fields:
        raise InputError(f"{where}: has no <bndbox>; add it, or remove the object")
    return VocObject(name, flag in _TRUE, _read_box(fields["bndbox"], where))


def _read_box(bndbox: Element, where: str) -> tuple[float, float, float, float]:
    texts = {child.tag: (child.text or "").strip() for child in bndbox}
    box = []
    for corner in _CORNERS:
        value = _number(texts.get(corner, ""))
        if value is None or not abs(value) <= LARGEST_COORDINATE:
            raise InputError(
                f"{where}: <{corner}> is {shown(texts.get(corner, 'missing'))}, not a coordinate; "
                "correct it, or remove the object"
            )
        box.append(value)
    xmin, ymin, xmax, ymax = box
    if xmax < xmin or ymax < ymin:
        raise InputError(
            f"{where}: its box {box} has xmax < xmin or ymax < ymin; VOC boxes are xmin, ymin, "
            "xmax, ymax: is this x, y, width, height?"
        )
    return xmin, ymin, xmax, ymax
