"""Progress bars of long commands: only in terminals, after two seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_BAR: dict[str, Any] = {"delay": 2, "leave": False, "disable": None}


def progress(items: Iterable[T], description: str) -> Iterable[T]:
    """Iterate over the items with a progress bar."""
    return tqdm(items, desc=description, **_BAR)


def progress_of_bytes(description: str, total: int | None, done: int = 0) -> tqdm[Any]:
    """Return a progress bar to ``update`` with bytes, of ``total`` if that is known."""
    return tqdm(desc=description, total=total, initial=done, unit="B", unit_scale=True, **_BAR)
