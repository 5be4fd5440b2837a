"""Each side in its own process: as its program is shipped, with its own allocator settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from engine.process.threads import SPIN_COUNT, SPIN_VARIABLE

SIDES = ("ours", "theirs")
ROUNDS = 2  # processes of each side, in turns


@dataclass(frozen=True)
class Alone:
    """The measurements of a side in its own processes.

    Attributes:
        seconds: of each repetition in each process.
        memory: peak MB above that before the first repetition.
    """

    seconds: list[float]
    memory: float

    def as_json(self) -> str:
        return json.dumps(vars(self))


def run_alone(name: str = "") -> dict[str, Alone]:
    """Run the current command again for each side, with ``--side`` and the case's name."""
    parts: dict[str, list[Alone]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            command = [sys.executable, *sys.argv, "--side", side, "--case", name]
            parts[side].append(_answer_of(command, _environment(side)))
    return {
        side: Alone(
            [second for answer in answers for second in answer.seconds],
            max(answer.memory for answer in answers),
        )
        for side, answers in parts.items()
    }


def _environment(side: str) -> dict[str, str]:
    """Without the spin count that our programs ask for where theirs runs."""
    variables = dict(os.environ)
    if side == "theirs" and variables.get(SPIN_VARIABLE) == SPIN_COUNT:
        del variables[SPIN_VARIABLE]
    return variables


def _answer_of(command: list[str], environment: dict[str, str]) -> Alone:
    answer = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{answer.stderr}")
    values: dict[str, Any] = json.loads(answer.stdout)
    return Alone(**values)


def memory_note(results: dict[str, Alone]) -> dict[str, str]:
    """A column of the table: MB of each side."""
    memory = " / ".join(f"{results[side].memory:.0f}" for side in SIDES)
    return {"peak memory, MB, ours / theirs": memory}
