"""Large JSON files, parsed element by element with only a few megabytes of text in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from data.errors import InputError, shown, unreadable

_CHUNK = 1 << 22  # characters read at a time
_SPACES = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
# This close to the window's end, an error may be due to the window instead of the file, and a
# number may continue beyond it: 1 of 1.5e3.
_LOOK_BACK = 64


def stream_members(path: Path, arrays: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the members of the JSON object in a file, in file order.

    A member named in ``arrays`` must be an array and is yielded as ``(key, iterator of its
    elements)``, which must be exhausted before the next member; every other one as
    ``(key, value)``.

    Raises:
        InputError: the file cannot be read, is not UTF-8, is not a JSON object, is nested too
            deeply, or has a duplicate key.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _members(_Text(file, path), arrays)
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error


class _Text:
    """A window onto the text of a file that moves forward and grows when a value needs it."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._window = ""
        self._position = 0
        self._before = 0  # characters before the window
        self.path = path

    def next_character(self) -> str:
        """Peek at the next character that is not white space; "" at the end of the file."""
        while True:
            spaces = _SPACES.match(self._window, self._position)
            self._position = spaces.end() if spaces else self._position
            if self._position < len(self._window):
                return self._window[self._position]
            if not self._grow():
                return ""

    def take(self, expected: str) -> str:
        """Consume the next character, which must be one of ``expected``."""
        character = self.next_character()
        if not character or character not in expected:
            found = shown(character) if character else "the end of the file"
            raise self.error(f"expected {' or '.join(expected)}, found {found}")
        self._position += 1
        return character

    def value(self) -> Any:
        """Consume one JSON value and the white space before it."""
        self.next_character()
        return self.value_here()

    def value_here(self) -> Any:
        """Consume one JSON value, without white space before it."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._position)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._grow():
                    continue
                self._position = error.pos
                raise self.error(error.msg) from error
            except RecursionError as error:
                raise self.error("brackets are nested too deeply") from error
            except ValueError as error:  # an integer of thousands of digits
                raise self.error("a number is too long") from error
            may_go_on = type(value) in (int, float) and end > len(self._window) - _LOOK_BACK
            if not may_go_on or not self._grow():
                self._position = end
                return value

    def skip_comma(self) -> bool:
        """Fast path: consume a comma and the space around it if all of it is in the window."""
        comma = _COMMA.match(self._window, self._position)
        if comma is None or comma.end() == len(self._window):
            return False
        self._position = comma.end()
        return True

    def error(self, problem: str) -> InputError:
        """Build the error for a problem at the current position."""
        place = self._before + self._position
        return InputError(
            f"{self.path}: not valid JSON at character {place}: {problem}; "
            "the file may be truncated or edited by hand: export or download it again"
        )

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        unterminated = error.msg.startswith("Unterminated string")
        return unterminated or error.pos > len(self._window) - _LOOK_BACK

    def _grow(self) -> bool:
        """Drop the consumed text and read more; double the window where one value fills it."""
        rest = self._window[self._position :]
        more = self._file.read(max(_CHUNK, len(rest)))
        if not more:
            return False
        self._before += self._position
        self._window, self._position = rest + more, 0
        return True


def _members(text: _Text, arrays: Collection[str]) -> Iterator[tuple[str, Any]]:
    if not text.next_character():
        raise InputError(f"{text.path}: is empty; export or download it again")
    if text.next_character() != "{":
        raise InputError(f"{text.path}: is not a JSON object; COCO files start with {{")
    text.take("{")
    seen: set[str] = set()
    separator = "," if text.next_character() != "}" else text.take("}")
    while separator == ",":
        key = text.value()
        if not isinstance(key, str):
            raise text.error(f"expected a key, found {shown(key)}")
        if key in seen:
            raise InputError(f"{text.path}: the key {shown(key)} occurs twice; keep one")
        seen.add(key)
        text.take(":")
        if key in arrays:
            yield key, _elements(text, key)
        else:
            yield key, text.value()
        separator = text.take(",}")
    if text.next_character():
        raise text.error("text after the end of the object")


def _elements(text: _Text, key: str) -> Iterator[Any]:
    if text.next_character() != "[":
        raise InputError(f"{text.path}: {shown(key)} is not a list; write it as [{{...}}, ...]")
    text.take("[")
    separator = "," if text.next_character() != "]" else text.take("]")
    while separator == ",":
        yield text.value()
        while text.skip_comma():
            yield text.value_here()
        separator = text.take(",]")
