"""Conversion of whole datasets from VOC to COCO and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.dataset_tools.coco_to_voc import CocoToVoc
from scripts.dataset_tools.layout import Layout
from scripts.dataset_tools.output_folder import check_output, new_folder
from scripts.dataset_tools.voc_to_coco import VocToCoco


def convert(layout: Layout, splits: Sequence[str], output: Path, hardlink: bool) -> dict[str, int]:
    """Write the dataset in the other format into a new folder.

    Args:
        layout: the dataset to convert.
        splits: the splits to convert.
        output: the new dataset's root.
        hardlink: hard-link the images instead of copying them, if the disk allows it.

    Returns:
        The number of splits, images, objects, missing image files, and annotation files that no
        split lists.

    Raises:
        InputError: at the first problem that the readers would reject.
    """
    check_output(layout.root, output)
    with new_folder(output) as folder:
        if layout.format == "voc":
            return VocToCoco(layout, folder).write(splits, hardlink)
        return CocoToVoc(layout, folder).write(splits, hardlink)
