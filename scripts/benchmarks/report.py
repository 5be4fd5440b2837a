"""The results of a benchmark as a Markdown table or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from scripts.benchmarks.machine import in_words
from scripts.benchmarks.timing import median, ratio, spread


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what was timed.
        ours, theirs: seconds of each repetition.
        images: images in one repetition; 0 if nothing is counted in images.
        notes: additional columns.
    """

    name: str
    ours: list[float]
    theirs: list[float]
    images: int = 0
    notes: dict[str, str] = field(default_factory=dict)

    def cells(self, notes: list[str]) -> list[str]:
        """Return the table's cells; ``notes`` are the names of the additional columns."""
        times = (_time(seconds, self.images) for seconds in (self.ours, self.theirs))
        further = (self.notes.get(name, "") for name in notes)
        return [self.name, *times, f"{ratio(self.theirs, self.ours):.2f}", *further]


@dataclass
class Report:
    """The results of one benchmark.

    Attributes:
        title: one line about what is compared.
        machine: the machine, by ``describe_machine``.
        checks: results of the equality checks before timing.
    """

    title: str
    machine: dict[str, str]
    checks: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def as_json(self) -> str:
        """Format every single time, with the table's medians and ratios."""
        rows = [
            {
                **asdict(row),
                "ours_median": median(row.ours),
                "theirs_median": median(row.theirs),
                "ratio": ratio(row.theirs, row.ours),
            }
            for row in self.rows
        ]
        return json.dumps({**asdict(self), "rows": rows}, indent=2)

    def as_markdown(self) -> str:
        """Format a caption, the checks, and a table with medians, quartiles and ratios."""
        machine = in_words(self.machine)
        lines = [f"**{self.title}**", "", machine, "", *(f"* {check}" for check in self.checks)]
        notes = list(dict.fromkeys(name for row in self.rows for name in row.notes))
        header = ["", "ours", "theirs", "ratio", *notes]
        body = [row.cells(notes) for row in self.rows]
        return "\n".join(
            [*lines, "", _line(header), _line(["---"] * len(header)), *map(_line, body)]
        )


def precision_name(amp: str) -> str:
    """Return the name of an ``--amp`` value for titles."""
    return "fp32" if amp == "none" else amp


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _time(seconds: list[float], images: int) -> str:
    """Format ``median (first quartile to third quartile)``, and images per second if any."""
    first, third = spread(seconds)
    text = f"{_seconds(median(seconds))} ({_seconds(first)} to {_seconds(third)})"
    return f"{text}, {three_digits(images / median(seconds))} images/s" if images else text


def _seconds(value: float) -> str:
    """
    >>> _seconds(0.9996), _seconds(0.0123456), _seconds(1234.5), _seconds(2e-7)
    ('1 s', '12.3 ms', '1,230 s', '0.2 µs')
    """
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if float(f"{value * factor:.3g}") >= 1 and float(f"{value:.3g}") * factor >= 1:
            return f"{three_digits(value * factor)} {unit}"
    return f"{three_digits(value * 1e6)} µs"


def three_digits(value: float) -> str:
    """
    >>> three_digits(2000.4), three_digits(0.12345)
    ('2,000', '0.123')
    """
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:.3g}"
