"""A repaired copy of a dataset, from the problems that were found; the original is only read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError
from scripts.dataset_tools.coco_repair import repair_coco
from scripts.dataset_tools.kept import Kept, Rows
from scripts.dataset_tools.layout import Layout
from scripts.dataset_tools.output_folder import check_output, new_folder
from scripts.dataset_tools.problems import Problem
from scripts.dataset_tools.voc_repair import repair_voc


def write_repaired(
    layout: Layout, splits: Sequence[str], problems: Sequence[Problem], output: Path, hardlink: bool
) -> Kept:
    """Write the copy, and count what is in it.

    Raises InputError where ``output`` exists, nothing of a split or no object is left, or an image
    is a link that must not be followed: neither is it copied, nor is there anything wrong with it.
    """
    links = [problem.file for problem in problems if problem.action == "allow_link"]
    if links:
        raise InputError(
            f"{layout.root / links[0]}: is a link to outside the root of the data, as "
            f"{len(links)} images are; say --follow-links if the dataset can be trusted"
        )
    by_file: dict[str, Rows] = defaultdict(lambda: defaultdict(set))
    for problem in problems:
        if problem.action != "none":
            by_file[problem.file][problem.action].add(problem.row)
    repair = repair_voc if layout.format == "voc" else repair_coco
    check_output(layout.root, output)
    with new_folder(output) as folder:
        kept = repair(layout, splits, by_file, folder, hardlink)
        if kept.of_objects and not kept.objects:
            raise InputError(
                f"{layout.root}: none of its {kept.of_objects} objects could be kept; correct what "
                "is named by hand"
            )
        return kept
