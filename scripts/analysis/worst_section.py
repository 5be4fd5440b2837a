"""The report section with the worst images."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import cv2

from data.images import Pixels
from scripts.analysis.worst import DrawnFaults

JPEG_QUALITY = 82


@dataclass(frozen=True)
class BadImage:
    """One of the worst images.

    Attributes:
        name: name of the image.
        pictures: its drawing for each run.
    """

    name: str
    pictures: list[DrawnFaults]


def worst_section(result: dict[str, Any], worst: Sequence[BadImage]) -> str:
    """Show the drawings of each run side by side."""
    names = [run["name"] for run in result["runs"]]
    figures = []
    for image in worst:
        pictures = "".join(
            f'<figure><img loading="lazy" alt="{escape(f"{image.name}, {name}: {drawn.counts}")}" '
            f'src="{_jpeg(drawn.pixels)}"></figure>'
            for name, drawn in zip(names, image.pictures, strict=True)
        )
        if len(names) > 1:
            pictures = f'<div class="two">{pictures}</div>'
        style = ' class="pair"' if len(names) > 1 else ""
        figures.append(f"<div{style}><h3>{escape(image.name)}</h3>{pictures}</div>")
    order = f"First {names[0]}, then {names[1]}. " if len(names) > 1 else ""
    return (
        f"<p>Most errors first, at a score of at least {result['score_threshold']:g}. "
        f"{escape(order)}"
        '<br><span class="key right">right</span><span class="key wrong">wrong</span>'
        '<span class="key missed">missed</span></p>'
        f'<div class="worst">{"".join(figures)}</div>'
    )


def _jpeg(picture: Pixels) -> str:
    colors = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", colors, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
