"""Generated text inside a written page, between two marks."""

from __future__ import annotations

from pathlib import Path

from data.errors import InputError, unreadable
from engine.process.atomic_file import write_atomically


def insert(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        InputError: the file cannot be read, or is no text or lacks the marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    try:
        page = path.read_bytes().decode()
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no text in UTF-8; save it as such") from None
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise InputError(f"{path}: write the lines {begin} and {end} where the table belongs")
    write_atomically(path, f"{before}{begin}\n{text}\n{end}{after}".encode())
