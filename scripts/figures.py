"""Figures of the scripts: matplotlib without a display, and a clear word where it is missing."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from data.errors import InputError
from engine.process.atomic_file import write_atomically


def new_figure(size: tuple[float, float]) -> Any:
    """An empty matplotlib figure of so many inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "the picture needs matplotlib, which is not here; run: pip install -e '.[analysis]'"
        ) from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_figure(path: Path) -> None:
    """Before long work for a picture: that it can be drawn, and written under this name.

    Raises:
        InputError: matplotlib is not installed, or writes no files with this ending.
    """
    endings = new_figure((1, 1)).canvas.get_supported_filetypes()
    ending = path.suffix.lower().removeprefix(".")
    if ending and ending not in endings:
        raise InputError(f"{path}: {path.suffix} is no ending of a picture; name a .png file")


def literal(text: str) -> str:
    """A name from outside as matplotlib draws it to the letter: ``$`` begins no formula."""
    return text.replace("$", r"\$")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure: PNG, SVG or PDF by the ending.

    Raises:
        InputError: it cannot be written.
    """
    picture = BytesIO()
    try:
        figure.savefig(picture, format=path.suffix.lower().removeprefix(".") or "png", dpi=110)
    except ValueError as error:
        raise InputError(f"{path}: cannot be written ({error}); name a .png file") from None
    write_atomically(path, picture.getbuffer())
