"""Repaired copies of datasets; the original is never changed."""

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
    """Write the repaired copy, and count what it keeps.

    Raises:
        InputError: ``output`` exists, a split or all objects would be lost, or an image is a link
            that must not be followed.
    """
    links = [problem.file for problem in problems if problem.action == "allow_link"]
    if links:
        raise InputError(
            f"{layout.root / links[0]}: links to outside the data root ({len(links)} such images); "
            "add --follow-links if you trust the dataset"
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
                f"{layout.root}: none of its {kept.of_objects} objects could be kept; correct the "
                "reported problems by hand"
            )
        return kept
