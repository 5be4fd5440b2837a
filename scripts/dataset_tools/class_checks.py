"""Checks of the classes of one split against those of another, for every format."""

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
        known: those of a detector trained on the split; empty if the split cannot be read.
        used: those that have objects, with the place of the first object.
        trains: whether any object is trained on.
        is_difficult: whether any would be with ``data.voc.use_difficult``.
    """

    known: frozenset[str]
    used: Mapping[str, str]
    trains: bool
    is_difficult: bool


def check_classes(splits: Mapping[str, SplitClasses]) -> Iterator[Problem]:
    """Yield problems of classes that no training split has, and of training splits without objects.

    Training splits are recognized by their names.
    """
    trained = [split for split in splits if "train" in role_of(split)]
    if not trained or not all(splits[split].known for split in trained):
        return
    if not any(splits[split].trains for split in trained):
        problem, cure = "has no object to train on", "annotate some, or check why all were excluded"
        severity: Severity = "error"
        if any(splits[split].is_difficult for split in trained):
            problem, severity = f"{problem} except difficult ones", "warning"
            cure = "train with data.voc.use_difficult: true, or set difficult 0"
        elif any(splits[split].used for split in trained):
            problem += ": all are crowds, or thinner than a pixel"
            cure = "set iscrowd 0, or redraw them"
        yield Problem(trained[0], "", problem, cure, severity, "none")
    known = frozenset().union(*(splits[split].known for split in trained))
    for split, classes in splits.items():
        for name in [] if split in trained else sorted(classes.used.keys() - known):
            yield Problem(
                split, "", f"has objects of the class {shown(name)}, the first in "
                f"{classes.used[name]}, which {' and '.join(trained)} lacks",
                "rename or remove them, or list all classes in data.classes", "error", "none",
            )  # fmt: skip
