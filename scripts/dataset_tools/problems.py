"""What can be wrong with a dataset, and what a repair does about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data.errors import InputError

Severity = Literal["error", "warning"]
Action = Literal[
    "drop_object", "drop_area", "drop_iscrowd", "drop_difficult", "drop_segmentation", "drop_parts",
    "clip_box", "clear_difficult", "drop_image", "set_size", "drop_line", "renumber", "complete",
    "allow_link", "leave_size", "refuse", "none",
]  # fmt: skip

# What --fix does, by the action.
REPAIRS: dict[Action, str] = {
    "drop_object": "leaves the object out",
    "drop_area": "computes it anew",
    "drop_iscrowd": "sets it to 0",
    "drop_difficult": "leaves it out, which means 0",
    "drop_segmentation": "leaves it out, and keeps the box",
    "drop_parts": "leaves those parts out",
    "clip_box": "cuts the box at the image's border",
    "clear_difficult": "sets difficult to 0",
    "drop_image": "leaves the image and its objects out",
    "set_size": "writes the size of the image file",
    "drop_line": "leaves the line out",
    "renumber": "gives it a new id",
    "complete": "fills in what is missing",
    "allow_link": "copies what it points to, with --follow-links",
    "leave_size": "",
    "refuse": "",  # nothing of the file
    "none": "",  # and leaves it for people to decide
}

# The keys of a COCO object that it can do without, and the action that takes them out.
OPTIONAL_KEYS: dict[str, Action] = {
    "area": "drop_area",
    "iscrowd": "drop_iscrowd",
    "difficult": "drop_difficult",
    "segmentation": "drop_segmentation",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: the annotation file, split or image, relative to the dataset's root.
        object: the object, image entry or line in it; empty where the whole file is meant.
        problem: what is wrong.
        cure: what to do about it.
        severity: an error stops training or loses the object; with a warning it trains, but maybe
            not on what was meant.
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
        """One line for people."""
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
    """What a reader refused, as an error.

    ``place`` is what the reader's message begins with; the last part of it is the cure.
    """
    text = str(error).removeprefix(place).removeprefix(": ")
    problem, _, cure = text.rpartition("; ")
    return Problem(file, item, problem or cure, cure if problem else "", "error", action, row)


def not_by_size(problem: Problem) -> Problem:
    """What a repair does where boxes may be of another picture than the file's.

    An image whose size would be taken from its file is left out.
    """
    by_size = problem.action in ("set_size", "leave_size")
    return replace(problem, action="drop_image") if by_size else problem


def says_no(flag: object) -> bool:
    """Whether a flag that cannot be read says 0 all the same, in another form.

    >>> says_no("0.0"), says_no("2")
    (True, False)
    """
    return str(flag).strip().lower() in ("0", "0.0", "false", "no")


def count_by_severity(problems: Iterable[Problem]) -> dict[str, int]:
    counts = Counter(problem.severity for problem in problems)
    return {"errors": counts["error"], "warnings": counts["warning"]}


def format_problems(problems: Sequence[Problem], most: int) -> str:
    """The problems, errors first, and how many of them there are.

    Of warnings in one file that say the same of several objects the first stands for all.
    """
    alike = Counter(map(_kind_of_warning, problems))
    told: set[object] = set()
    lines = []
    for problem in sorted(problems, key=lambda each: each.severity != "error"):
        kind = _kind_of_warning(problem)
        if kind is None or kind not in told:
            more = alike[kind] - 1 if kind is not None else 0
            lines.append(f"{problem.line()} (and of {more} more)" if more else problem.line())
        told.add(kind)
    if most and len(lines) > most:
        lines[most:] = [f"... and {len(lines) - most} more; --most 0 shows all of them"]
    counts = count_by_severity(problems)
    lines.append(f"{counts['errors']} errors, {counts['warnings']} warnings")
    return "\n".join(lines)


def _kind_of_warning(problem: Problem) -> tuple[str, str] | None:
    """What warnings share that say the same of several objects of a file; None of an error."""
    is_warning = problem.severity == "warning" and problem.object
    return (problem.file, problem.problem) if is_warning else None


def problems_as_json(problems: Sequence[Problem], extra: dict[str, Any]) -> str:
    content = {**extra, **count_by_severity(problems)}
    content["problems"] = [problem.as_dict() for problem in problems]
    return json.dumps(content, indent=2)
