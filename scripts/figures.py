"""Figures of the scripts: matplotlib without a display, and a clear error if it is missing."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from data.errors import InputError
from engine.process.atomic_file import write_atomically


def new_figure(size: tuple[float, float]) -> Any:
    """Create an empty matplotlib figure; ``size`` is width and height in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "figures need matplotlib, which is not installed; run: pip install -e '.[analysis]'"
        ) from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_figure(path: Path) -> None:
    """Check before long work that a figure can be drawn and written to ``path``.

    Raises:
        InputError: matplotlib is not installed, or does not support this file format.
    """
    endings = new_figure((1, 1)).canvas.get_supported_filetypes()
    ending = path.suffix.lower().removeprefix(".")
    if ending and ending not in endings:
        raise InputError(f"{path}: {path.suffix} is not an image format; use .png")


def literal(text: str) -> str:
    """Escape a name so that matplotlib draws it literally: ``$`` starts no formula."""
    return text.replace("$", r"\$")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, SVG or PDF, by the extension.

    Raises:
        InputError: it cannot be written.
    """
    picture = BytesIO()
    try:
        figure.savefig(picture, format=path.suffix.lower().removeprefix(".") or "png", dpi=110)
    except ValueError as error:
        raise InputError(f"{path}: cannot be written ({error}); use .png") from None
    write_atomically(path, picture.getbuffer())
