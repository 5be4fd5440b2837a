"""Problems of a dataset, and what a repair does about them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data.errors import InputError
from scripts.tables import counted

Severity = Literal["error", "warning"]
Action = Literal[
    "drop_object", "drop_area", "drop_iscrowd", "drop_difficult", "drop_segmentation", "drop_parts",
    "clip_box", "clear_difficult", "drop_image", "set_size", "drop_line", "renumber", "complete",
    "allow_link", "leave_size", "refuse", "none",
]  # fmt: skip

# What --fix does, by the action.
REPAIRS: dict[Action, str] = {
    "drop_object": "removes the object",
    "drop_area": "recomputes the area",
    "drop_iscrowd": "sets iscrowd to 0",
    "drop_difficult": "removes difficult, which means 0",
    "drop_segmentation": "removes the segmentation and keeps the box",
    "drop_parts": "removes these parts",
    "clip_box": "clips the box to the image",
    "clear_difficult": "sets difficult to 0",
    "drop_image": "removes the image and its objects",
    "set_size": "writes the size of the image file",
    "drop_line": "removes the line",
    "renumber": "assigns a new id",
    "complete": "fills in the missing keys",
    "allow_link": "copies the link's target, with --follow-links",
    "leave_size": "",
    "refuse": "",  # the file cannot be repaired
    "none": "",  # left to the user
}

# Optional keys of a COCO object, and the action that removes each.
OPTIONAL_KEYS: dict[str, Action] = {
    "area": "drop_area",
    "iscrowd": "drop_iscrowd",
    "difficult": "drop_difficult",
    "segmentation": "drop_segmentation",
}


@dataclass(frozen=True)
class Problem:
    """A problem in a dataset.

    Attributes:
        file: the annotation file, split or image, relative to the dataset's root.
        object: the object, image entry or line in it; empty for the whole file.
        problem: what is wrong.
        cure: what to do about it.
        severity: an error stops training or loses the object; a warning does neither, but training
            may not use what was meant.
        action: what a repair does.
        row: the position of the object, image entry or line in its file, from 0.
    """

    file: str
    object: str
    problem: str
    cure: str
    severity: Severity
    action: Action
    row: int = -1

    def line(self) -> str:
        """Format the problem as one line of text."""
        place = f"{self.file}: {self.object}" if self.object else self.file
        return f"{self.severity}: {place}: {'; '.join(filter(None, (self.problem, self.cure)))}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "object": self.object,
            "severity": self.severity,
            "problem": self.problem,
            "cure": self.cure,
            "repair": REPAIRS[self.action],
        }


def problem_of(
    error: InputError, place: str, file: str, item: str, action: Action, row: int = -1
) -> Problem:
    """Turn a reader's error into a problem.

    ``place`` is the beginning of the reader's message, which ends with the cure.
    """
    text = str(error).removeprefix(place).removeprefix(": ")
    problem, _, cure = text.rpartition("; ")
    return Problem(file, item, problem or cure, cure if problem else "", "error", action, row)


def not_by_size(problem: Problem) -> Problem:
    """Remove an image instead of setting its size, as its boxes may be of another image."""
    by_size = problem.action in ("set_size", "leave_size")
    return replace(problem, action="drop_image") if by_size else problem


def says_no(flag: object) -> bool:
    """Return whether a flag that cannot be parsed still means 0, in another form.

    >>> says_no("0.0"), says_no("2")
    (True, False)
    """
    return str(flag).strip().lower() in ("0", "0.0", "false", "no")


def count_by_severity(problems: Iterable[Problem]) -> dict[str, int]:
    counts = Counter(problem.severity for problem in problems)
    return {"errors": counts["error"], "warnings": counts["warning"]}


def format_problems(problems: Sequence[Problem], most: int) -> str:
    """Format the problems, errors first, and their counts.

    If warnings of one file say the same of several objects, only the first is shown.
    """
    alike = Counter(map(_kind_of_warning, problems))
    shown: set[object] = set()
    lines = []
    for problem in sorted(problems, key=lambda each: each.severity != "error"):
        kind = _kind_of_warning(problem)
        if kind is None or kind not in shown:
            more = alike[kind] - 1 if kind is not None else 0
            lines.append(f"{problem.line()} (and of {more} more)" if more else problem.line())
        shown.add(kind)
    if most and len(lines) > most:
        lines[most:] = [f"... and {len(lines) - most} more; --most 0 shows all"]
    counts = count_by_severity(problems)
    lines.append(f"{counted(counts['errors'], 'error')}, {counted(counts['warnings'], 'warning')}")
    return "\n".join(lines)


def _kind_of_warning(problem: Problem) -> tuple[str, str] | None:
    """Return the key that equal warnings of several objects share; None for an error."""
    is_warning = problem.severity == "warning" and problem.object
    return (problem.file, problem.problem) if is_warning else None


def problems_as_json(problems: Sequence[Problem], extra: dict[str, Any]) -> str:
    content = {**extra, **count_by_severity(problems)}
    content["problems"] = [problem.as_dict() for problem in problems]
    return json.dumps(content, indent=2)
