"""Strict YAML: plain types, no tags, no aliases, no duplicate keys, bounded nesting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import yaml

from data.errors import InputError, shown

LARGEST_NUMBER = 1 << 63  # bound of whole numbers; Python cannot even print all that YAML allows
TAB = repr("\t")
MAX_DEPTH = (
    32  # of nested mappings and lists; far above any real file, far below Python's stack limit
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file with one YAML mapping: no tags, no aliases, no duplicate keys.

    Raises:
        InputError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: config file not found; configs/ has examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: a config is a mapping of keys, not a {type(values).__name__}")
    return values


class _StrictLoader(yaml.SafeLoader):
    """YAML without surprises: text, numbers, true, false, null, lists and mappings with text keys.

    Tags, aliases and duplicate keys are refused, nesting is bounded, and a date is text.
    """

    depth = 0
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:timestamp"]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, "aliases are not allowed; write the value out")
        if event.tag is not None:
            raise _refused(event, f"the tag {shown(event.tag)} is not allowed; remove it")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refused(event, f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused(key_node, f"the key {shown(key)} is not text; quote it")
            if key in seen:
                raise _refused(key_node, f"the key {shown(key)} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if re.fullmatch("[-+]?0[0-9_]+", node.value) or ":" in node.value:
            raise _refused(
                node,
                f"{shown(node.value)} is an octal or base-60 number in YAML; write it without a "
                "leading 0 and without colons, or quote the text",
            )
        number: int = super().construct_yaml_int(node)
        if abs(number) >= LARGEST_NUMBER:
            raise _refused(node, f"the number {shown(node.value)} is too large")
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        if ":" in node.value:
            problem = f"{shown(node.value)} is a base-60 number in YAML; write it without colons"
            raise _refused(node, f"{problem}, or quote the text")
        number: float = super().construct_yaml_float(node)
        return number

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text: str = super().construct_yaml_str(node)
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text):
            raise _refused(node, f"{shown(text)} contains a NUL or a lone surrogate; remove it")
        return text


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_yaml_float)
_StrictLoader.add_constructor("tag:yaml.org,2002:str", _StrictLoader.construct_yaml_str)


class _ValueLoader(_StrictLoader):
    """Also refuses comments: a folder ``runs #2`` on a command line must not become ``runs``."""

    def scan_to_next_token(self) -> None:
        start, mark = self.pointer, self.get_mark()
        super().scan_to_next_token()
        if "#" in self.buffer[start : self.pointer]:
            problem = "what follows # would be a comment; put the text in its own quotes"
            raise yaml.MarkedYAMLError(None, None, problem, mark)


def _refused(place: yaml.Event | yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, cast(yaml.error.Mark, place.start_mark))


def parse_yaml(text: str, source: str, comments: bool = True) -> Any:
    """Parse a YAML document.

    Args:
        text: the document.
        source: its name in error messages.
        comments: whether comments are allowed.

    Raises:
        InputError: it is not valid YAML or uses a refused feature.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader if comments else _ValueLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{source}{where}: {_with_cure(str(error.problem))}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def _with_cure(problem: str) -> str:
    """The parser's message; for a character that cannot start text, with the cure."""
    if not problem.endswith("cannot start any token"):
        return problem
    return f"{problem}; {'indent with spaces' if TAB in problem else 'quote the text'}"
