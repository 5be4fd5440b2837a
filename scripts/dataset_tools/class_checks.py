"""Classes of one split against those of another, the same for every format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data.errors import shown
from scripts.dataset_tools.problems import Problem, Severity
from scripts.dataset_tools.split_names import role_of


@dataclass(frozen=True)
class SplitClasses:
    """The classes of a split.

    Attributes:
        known: those that a detector has which is trained on the split; empty if it cannot be read.
        used: those that have objects, and where the first of them is.
        trains: whether one of these objects is trained on.
        is_difficult: whether one would be with ``data.voc.use_difficult``.
    """

    known: frozenset[str]
    used: Mapping[str, str]
    trains: bool
    is_difficult: bool


def check_classes(splits: Mapping[str, SplitClasses]) -> Iterator[Problem]:
    """Objects of classes that none of the splits to train on has, or no objects there at all.

    Which splits those are, names tell.
    """
    trained = [split for split in splits if "train" in role_of(split)]
    if not trained or not all(splits[split].known for split in trained):
        return
    if not any(splits[split].trains for split in trained):
        problem, cure = "has no object to train on", "annotate some, or see why all were left out"
        severity: Severity = "error"
        if any(splits[split].is_difficult for split in trained):
            problem, severity = f"{problem} but difficult ones", "warning"
            cure = "train with data.voc.use_difficult: true, or write difficult 0"
        elif any(splits[split].used for split in trained):
            problem += ": all are crowds, or thinner than a pixel"
            cure = "write iscrowd 0, or draw them again"
        yield Problem(trained[0], "", problem, cure, severity, "none")
    known = frozenset().union(*(splits[split].known for split in trained))
    for split, classes in splits.items():
        for name in [] if split in trained else sorted(classes.used.keys() - known):
            yield Problem(
                split, "", f"has objects of the class {shown(name)}, the first in "
                f"{classes.used[name]}, which {' and '.join(trained)} has not",
                "rename or remove them, or list all classes in data.classes", "error", "none",
            )  # fmt: skip
