"""Insertion of generated text into a page, between two markers."""

from __future__ import annotations

from pathlib import Path

from data.errors import InputError, unreadable
from engine.process.atomic_file import write_atomically


def insert(path: Path, name: str, text: str) -> None:
    """Replace the text between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        InputError: the file cannot be read, is not text or lacks the markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    try:
        page = path.read_bytes().decode()
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise InputError(f"{path}: markers missing; add the lines {begin} and {end} for the table")
    write_atomically(path, f"{before}{begin}\n{text}\n{end}{after}".encode())
