"""Lossless conversion of an image or object between VOC's XML and COCO's JSON.

What both formats have is translated: file name, size, class, box, ``difficult``. The rest is stored
in the other format: that of a COCO entry as JSON in an element ``<coco>`` of the XML, that of a VOC
element as XML in a key ``voc_xml`` of the JSON. This XML is the element without the values that the
JSON has itself, so that changes in the COCO file survive the conversion back. Coordinates are added
as decimals: 0.1 + 0.2 is 0.3 here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from decimal import Decimal
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from data.errors import InputError, shown
from data.formats.coco_columns import whole_number

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"0": 0, "1": 1}
_WORDS = {"true", "yes"}
# Keys of a COCO entry that VOC has elements for, or that are only numbering.
_SIDES = {"height", "width"}
_IMAGE_KEYS = {"file_name", "voc_xml", "voc_name"} | _SIDES
_OBJECT_KEYS = {"bbox", "image_id", "category_id", "difficult", "voc_xml"}

Number = int | float


def annotation_of(element: Element, zero_based: bool) -> tuple[str, dict[str, Any]]:
    """Convert an ``<object>`` that the VOC reader accepts to its class and a COCO annotation.

    The annotation has no ``image_id`` and ``category_id``, and an id only if it came from COCO.
    """
    rest = deepcopy(element)
    extra = _take_extra(rest, _OBJECT_KEYS - {"difficult"})
    name = _take(rest, "name").strip()
    box = [Decimal(_take(rest, f"bndbox/{corner}").strip()) for corner in CORNERS]
    annotation: dict[str, Any] = {"bbox": [*map(_number, _to_xywh(box, zero_based))]}
    exact = extra.pop("exact_bbox", None)
    if _is_box(exact) and _to_corners(_decimals(exact), zero_based) == box:
        annotation["bbox"] = exact
    flag = _take_flag(rest)
    from_coco = bool(extra) and _text_of(rest) == _text_of(_bare_object())
    if from_coco:
        if flag is not None and flag != _flag_of(extra):
            extra["difficult"] = flag  # it was changed in the XML
    elif flag is not None:
        annotation["difficult"] = flag
    elif _flag_text(rest).lower() in _WORDS:
        annotation["difficult"] = 1
    if extra:
        annotation.update(extra)
    else:
        width, height = annotation["bbox"][2:]
        annotation.update(area=_number(_decimal(width) * _decimal(height)), iscrowd=0)
        annotation["segmentation"] = []
    if not from_coco:
        annotation["voc_xml"] = _text_of(rest)
    return name, annotation


def object_of(annotation: dict[str, Any], name: str, zero_based: bool) -> Element:
    """Convert a COCO annotation of class ``name`` to an ``<object>``; inverts ``annotation_of``.

    A crowd becomes difficult, VOC's way to exclude objects from scoring. VOC's inclusive pixels
    cannot represent a box at most one pixel wide or high: it becomes two pixels wide, and its exact
    numbers are kept in ``<coco>``.

    Raises:
        InputError: its id is not a number, or ``voc_xml`` is not an ``<object>``.
    """
    if isinstance(annotation.get("id"), dict | list):
        raise InputError(f"its id is {shown(annotation['id'])}; give it a number")
    template = annotation.get("voc_xml")
    element = _bare_object() if template is None else _parse(template, "object")
    extra = {key: value for key, value in annotation.items() if key not in _OBJECT_KEYS}
    bbox = _decimals(annotation["bbox"])
    corners = _to_corners(bbox, zero_based)
    if template is not None:
        _drop_defaults(extra, bbox)
    if [*map(_number, _to_xywh(corners, zero_based))] != annotation["bbox"]:
        extra["exact_bbox"] = annotation["bbox"]
    if template is None and "difficult" in annotation:
        extra["difficult"] = annotation["difficult"]
    _put(element, "name", name)
    for corner, value in zip(CORNERS, corners, strict=True):
        _put(element, f"bndbox/{corner}", _digits(value, template is not None))
    _put_flag(element, _flag_of(annotation), template is None or "difficult" in annotation)
    if extra:
        SubElement(element, "coco").text = json.dumps(extra)
    return element


def limit_area(element: Element, zero_based: bool) -> None:
    """Limit the area that an ``<object>`` has in ``<coco>`` to that of its box."""
    coco = element.find("coco")
    if coco is None:
        return
    extra = _read_json(coco.text)
    if isinstance(extra, dict) and type(extra.get("area")) in (int, float):
        ends = [element.findall(f"bndbox/{corner}")[-1].text or "0" for corner in CORNERS]
        box = [Decimal(end.strip()) for end in ends]
        width, height = _to_xywh(box, zero_based)[2:]
        extra["area"] = min(extra["area"], _number(width * height))
        coco.text = json.dumps(extra)


def image_of(document: Element, file_name: str, size_hw: tuple[int, int]) -> dict[str, Any]:
    """Convert an ``<annotation>`` to a COCO image entry, with an id only if it came from COCO.

    Raises:
        InputError: ``<coco>`` is not a JSON object, or its id is not an integer.
    """
    rest = deepcopy(document)
    for element in rest.findall("object"):
        element.clear()
    sized = all(size_hw)
    # Of a size of which only one side is known, each format keeps what it says.
    extra = _take_extra(rest, _IMAGE_KEYS if sized else _IMAGE_KEYS - _SIDES)
    if whole_number(extra.get("id", 0)) is None:
        raise InputError(f"the id in <coco> is {shown(extra['id'])}; write a whole number")
    image: dict[str, Any] = {"file_name": file_name}
    if sized:
        for tag, value in zip(("height", "width"), size_hw, strict=True):
            image[tag] = value
            if (rest.findtext(f"size/{tag}") or "").strip() == str(value):
                _take(rest, f"size/{tag}")
    if (rest.findtext("filename") or "").strip() == file_name:
        _take(rest, "filename")
    image.update(extra)
    objects = len(rest.findall("object"))
    if not (extra and _text_of(rest) == _text_of(_bare_document(sized, objects))):
        image["voc_xml"] = _text_of(rest)
    return image


def document_of(image: dict[str, Any], objects: Iterable[Element]) -> Element:
    """Convert a COCO image entry and its objects to an ``<annotation>``; inverts ``image_of``.

    Raises:
        InputError: ``voc_xml`` is not an ``<annotation>``.
    """
    template = image.get("voc_xml")
    sized = bool(image.get("height") and image.get("width"))
    elements = list(objects)
    document = (
        _bare_document(sized, len(elements)) if template is None else _parse(template, "annotation")
    )
    own = _IMAGE_KEYS if sized else _IMAGE_KEYS - _SIDES
    extra = {key: value for key, value in image.items() if key not in own}
    if template is not None:
        extra.pop("id", None)
    if document.find("filename") is not None and not document.findtext("filename"):
        _put(document, "filename", image["file_name"])
    if sized and document.find("size") is not None:
        _put(document, "size/width", str(image["width"]))
        _put(document, "size/height", str(image["height"]))
    _place_objects(document, elements)
    if extra:
        coco = Element("coco")
        coco.text = json.dumps(extra)
        document.insert(_first_object(document), coco)
    return document


def _place_objects(document: Element, elements: list[Element]) -> None:
    """Insert objects in the template's places for them, and append the rest."""
    places = document.findall("object")
    for place, element in zip(places, elements, strict=False):
        document[list(document).index(place)] = element
    for place in places[len(elements) :]:
        document.remove(place)
    document.extend(elements[len(places) :])


def _first_object(document: Element) -> int:
    return next((i for i, child in enumerate(document) if child.tag == "object"), len(document))


def _bare_object() -> Element:
    """Return the template that ``object_of`` uses for an annotation that never was in VOC."""
    element = Element("object")
    for tag in ("name", "difficult", "bndbox"):
        SubElement(element, tag)
    for corner in CORNERS:
        SubElement(element[2], corner)
    return element


def _bare_document(sized: bool, objects: int) -> Element:
    document = Element("annotation")
    SubElement(document, "filename")
    if sized:
        size = SubElement(document, "size")
        SubElement(size, "width")
        SubElement(size, "height")
        SubElement(size, "depth").text = "3"
    for _ in range(objects):
        SubElement(document, "object")
    return document


def _is_box(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(type(number) in (int, float) and abs(number) < 1e16 for number in value)


def _to_xywh(corners: list[Decimal], zero_based: bool) -> list[Decimal]:
    """Convert corners to x, y, width, height; a box without area gets a width or height of 0."""
    first = 0 if zero_based else 1
    xmin, ymin, xmax, ymax = corners
    width = xmax - xmin + first if xmax > xmin else Decimal(0)
    height = ymax - ymin + first if ymax > ymin else Decimal(0)
    return [xmin - first, ymin - first, width, height]


def _to_corners(bbox: list[Decimal], zero_based: bool) -> list[Decimal]:
    x, y, width, height = bbox
    if zero_based:
        return [x, y, x + width, y + height]
    ends = [
        low + 1 if size == 0 else low + (size if size > 1 else 2)
        for low, size in ((x, width), (y, height))
    ]
    return [x + 1, y + 1, *ends]


def _decimal(value: Number) -> Decimal:
    return Decimal(repr(+value))  # the plus makes a number of true


def _decimals(values: Iterable[Number]) -> list[Decimal]:
    return [_decimal(value) for value in values]


def _number(value: Decimal) -> Number:
    """Convert to int if written without a decimal point, or else to float."""
    return int(value) if value.as_tuple().exponent == 0 else float(value)


def _digits(value: Decimal, shortest: bool) -> str:
    """Format a number without the trailing zeros that sums of decimals have."""
    text = format(value, "f")
    if not shortest or "." not in text:
        return text
    text = text.rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def _drop_defaults(extra: dict[str, Any], bbox: list[Decimal]) -> None:
    """Remove what ``annotation_of`` adds to an object that came from VOC."""
    extra.pop("id", None)
    added = {"iscrowd": 0, "segmentation": [], "area": _number(bbox[2] * bbox[3])}
    if all(extra.get(key, value) == value for key, value in added.items()):
        for key in added:
            extra.pop(key, None)


def _flag_of(annotation: dict[str, Any]) -> int:
    """Return VOC's ``difficult`` of a COCO annotation."""
    return int(bool(annotation.get("difficult") or annotation.get("iscrowd")))


def _take_extra(element: Element, own: set[str]) -> dict[str, Any]:
    """Remove ``<coco>`` and return its content, without the keys in ``own``.

    Raises:
        InputError: it is not a JSON object with a valid id.
    """
    coco = element.find("coco")
    if coco is None:
        return {}
    element.remove(coco)
    extra = _read_json(coco.text)
    if not isinstance(extra, dict) or isinstance(extra.get("id"), dict | list):
        raise InputError(
            f"<coco> is {shown(coco.text)}, not a JSON object with a number as id; remove the "
            "element"
        )
    return {key: value for key, value in extra.items() if key not in own}


def _read_json(text: str | None) -> Any:
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return None


def _take(element: Element, path: str) -> str:
    """Empty the element at a path (the last of that name, as the reader does); return its text."""
    found = element.findall(path)[-1]
    text, found.text = found.text or "", None
    return text


def _take_flag(element: Element) -> int | None:
    if _flag_text(element) not in _FLAGS:
        return None
    return _FLAGS[_take(element, "difficult").strip()]


def _flag_text(element: Element) -> str:
    """Return the text of the last ``<difficult>``, as the reader does; "" if there is none."""
    flags = element.findall("difficult")
    return (flags[-1].text or "").strip() if flags else ""


def _put(element: Element, path: str, text: str) -> None:
    """Set the text of the element at a path that ``_take`` has emptied."""
    for tag in path.split("/"):
        found = element.findall(tag)
        element = found[-1] if found else SubElement(element, tag)
    element.text = text


def _put_flag(element: Element, flag: int, always: bool) -> None:
    """Set ``<difficult>``, unless it already means the same or is absent and not required."""
    text = _flag_text(element).lower()
    if (text and int(text in _WORDS) == flag) or not (flag or always):
        return
    _put(element, "difficult", str(flag))


def _text_of(element: Element) -> str:
    """Return the XML without white space between elements."""
    bare = deepcopy(element)
    for each in bare.iter():
        each.tail = None
        if len(each) and not (each.text or "").strip():
            each.text = None
    return tostring(bare, encoding="unicode")


def _parse(text: object, tag: str) -> Element:
    try:
        element: Element = fromstring(str(text), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError):
        element = Element("")
    if element.tag != tag:
        raise InputError(f"voc_xml is {shown(text)}, not an <{tag}>; remove the key")
    return element
