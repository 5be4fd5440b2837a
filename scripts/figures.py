"""Figures of the scripts: matplotlib without a display, and a clear word where it is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.errors import InputError


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
            "the picture needs matplotlib, which is not installed; run: pip install '.[analysis]'"
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


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure: PNG, SVG or PDF by the ending.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({error}); name a .png file") from None
