"""Random splits, stratified by class and reproducible by their seed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import InputError, shown
from data.formats.voc_splits import check_listable
from data.formats.voc_xml import read_voc_xml
from data.paths import inner_path
from engine.process.atomic_file import write_atomically
from scripts.dataset_tools.coco_checks import read_document
from scripts.dataset_tools.layout import Layout, annotation_files, place_of
from scripts.dataset_tools.output_folder import check_output, copy_files, new_folder


def stratify(
    counts: npt.NDArray[np.int64 | np.bool_], fractions: Sequence[float], seed: int
) -> npt.NDArray[np.int64]:
    """Assign images to splits, class by class, the rarest first.

    Iterative stratification (Sechidis et al., 2011): each image with the class that has fewest
    images left goes to the split that still lacks most of that class; ties go to the split that
    lacks most images. Images without objects are dealt out at the end.

    Args:
        counts: ``(I, K)`` objects of each class in each image, or whether there are any.
        fractions: share of each split; they add up to 1.
        seed: the order in which images are taken.

    Returns:
        ``(I,)`` the split of each image.

    >>> stratify(np.array([[1, 0], [1, 0], [0, 1], [0, 1]]), [0.5, 0.5], seed=0).tolist().count(0)
    2
    """
    random = np.random.default_rng(seed)
    present = counts > 0
    share = np.array(fractions)
    lacking = share[:, None] * present.sum(axis=0)  # (S, K) images
    room = share * len(counts)
    splits = np.full(len(counts), -1, np.int64)
    order = random.permutation(len(counts))
    left = present.sum(axis=0)  # (K,) images that are not assigned
    while left.any():
        rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        for image in order[(splits[order] < 0) & present[order, rarest]].tolist():
            chosen = _neediest(lacking[:, rarest], room, random)
            splits[image] = chosen
            left -= present[image]
            lacking[chosen] -= present[image]
            room[chosen] -= 1
    for image in order[splits[order] < 0].tolist():
        chosen = _neediest(room, room, random)
        splits[image] = chosen
        room[chosen] -= 1
    return splits


def _neediest(
    lacking: npt.NDArray[np.float64], room: npt.NDArray[np.float64], random: np.random.Generator
) -> int:
    best = np.flatnonzero(lacking == lacking.max())
    best = best[room[best] == room[best].max()]
    return int(random.choice(best))


def split_voc(
    layout: Layout, source: str | None, names: Sequence[str], fractions: Sequence[float], seed: int
) -> dict[str, dict[str, int]]:
    """Add ``ImageSets/Main/<name>.txt`` to a VOC dataset; nothing that exists is overwritten.

    Args:
        layout: layout of the dataset.
        source: the split to divide; None: all annotation files.
        names: names of the new splits.
        fractions: share of each new split.
        seed: seed of the order.

    Returns:
        For each split, the number of its images and of the images with each class.

    Raises:
        InputError: a list already exists, would be empty or cannot be written, the dataset is one
            of several in a VOCdevkit, or its files cannot be read.
    """
    folder = layout.root / "ImageSets/Main"
    _check_names(names)
    targets = [folder / f"{name}.txt" for name in names]
    for target in targets:
        if os.path.lexists(target):
            raise InputError(f"{target}: already exists; choose other --names")
    chosen = layout.splits if source is None else [source]
    if chosen and all("/" in split for split in chosen):
        raise layout.several_datasets_error(chosen, "split")
    members = _voc_members(layout, source)
    images = [read_voc_xml(layout.root / "Annotations" / f"{name}.xml") for name in members]
    classes = [[item.name for item in image.objects] for image in images]
    assigned = _assign(classes, names, fractions, seed)
    lists = {
        target: [members[row] for row in np.flatnonzero(assigned == number).tolist()]
        for number, target in enumerate(targets)
    }
    _write_lists(lists)
    return _report(names, assigned, classes)


def _write_lists(lists: Mapping[Path, Sequence[str]]) -> None:
    """Write all lists, or none if one cannot be written or a signal arrives."""
    written: list[Path] = []
    try:
        for path, names in lists.items():
            write_atomically(path, "".join(f"{name}\n" for name in names).encode())
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _voc_members(layout: Layout, source: str | None) -> list[str]:
    if source is None:
        folder = layout.root / "Annotations"
        members = [place_of(file)[1] for file in annotation_files(layout, "")]
        for name in members:
            check_listable(inner_path(name, str(folder)), str(folder))
    else:
        layout.choose([source])
        members = layout.load(source).names.tolist()
    if not members:
        raise InputError(f"{layout.root}: has no Annotations/*.xml; give the root of a VOC dataset")
    return members


def split_coco(
    layout: Layout,
    source: str | None,
    names: Sequence[str],
    fractions: Sequence[float],
    seed: int,
    output: Path,
    hardlink: bool,
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Divide one split of a COCO dataset and write the parts to a new folder.

    Args:
        layout: layout of the dataset.
        source: the split to divide; None: the only one.
        names: names of the new splits.
        fractions: share of each new split.
        seed: seed of the order.
        output: the new folder.
        hardlink: hard-link the images instead of copying them.

    Returns:
        For each split, the number of its images and of the images with each class; and for each
        split the number of skipped missing image files.

    Raises:
        InputError: the split is ambiguous or cannot be read, a part would be empty, or the folder
            cannot be written.
    """
    _check_names(names)
    (split,) = layout.choose([source] if source else None)[:1]
    if source is None and len(layout.splits) > 1:
        raise InputError(
            f"{layout.root}: has the splits {', '.join(layout.splits)}; choose the one to divide "
            "with --source"
        )
    check_output(layout.root, output)
    path = layout.root / f"annotations/instances_{split}.json"
    layout.load(split)  # refuses what cannot be read, by file and object
    document = read_document(path)
    images, items = document["images"], document["annotations"]
    rows = {image["id"]: row for row, image in enumerate(images)}
    categories = {each["id"]: each["name"] for each in document["categories"]}
    classes: list[list[str]] = [[] for _ in images]
    for item in items:
        classes[rows[item["image_id"]]].append(categories[item["category_id"]])
    assigned = _assign(classes, names, fractions, seed)
    missing = []
    with new_folder(output) as folder:
        (folder / "annotations").mkdir()
        for number, name in enumerate(names):
            part = {
                **document,
                "images": [image for row, image in enumerate(images) if assigned[row] == number],
                "annotations": [i for i in items if assigned[rows[i["image_id"]]] == number],
            }
            target = folder / f"annotations/instances_{name}.json"
            target.write_text(json.dumps(part), encoding="utf-8")
            files = [image["file_name"] for image in part["images"]]
            pairs = [(layout.root / split / file, folder / name / file) for file in files]
            missing.append(copy_files(pairs, hardlink, layout.root, layout.follow_links))
    return _report(names, assigned, classes), dict(zip(names, missing, strict=True))


def _check_names(names: Sequence[str]) -> None:
    """Raise InputError for a name that cannot be a split: it must be a plain file name."""
    for name in names:
        inner_path(name, "--names")
        if "/" in name or name.startswith(".") or name != name.strip():
            raise InputError(
                f"--names: {shown(name)} is not a split name; remove slashes, a leading dot and "
                "spaces at the ends"
            )


def check_fractions(names: Sequence[str], fractions: Sequence[float]) -> None:
    """Raise InputError unless each name has a positive fraction and they add up to 1."""
    if len(names) != len(fractions) or len(set(names)) != len(names):
        raise InputError(
            f"--names {' '.join(names)} and --fractions {' '.join(map(str, fractions))}: give each "
            "split a unique name and a fraction"
        )
    if not (min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-6):  # nan is neither
        raise InputError(
            f"--fractions {shown(list(fractions))}: must be positive and add up to 1, not to "
            f"{sum(fractions):g}; correct them"
        )


def _assign(
    classes: Sequence[Sequence[str]], names: Sequence[str], fractions: Sequence[float], seed: int
) -> npt.NDArray[np.int64]:
    """Return ``(I,)`` the split of each image; raise InputError if a split gets none."""
    assigned = stratify(_presence(classes)[1], fractions, seed)
    for number, (name, fraction) in enumerate(zip(names, fractions, strict=True)):
        if not (assigned == number).any():
            raise InputError(
                f"--fractions {' '.join(map(str, fractions))}: the split {shown(name)} gets none "
                f"of {len(classes)} images; give it more than {fraction:g}, or make fewer splits"
            )
    return assigned


def _presence(classes: Sequence[Sequence[str]]) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Return the sorted names of all classes, and ``(I, K)`` which image has which."""
    names = sorted({name for each in classes for name in each})
    columns = {name: column for column, name in enumerate(names)}
    present = np.zeros((len(classes), len(names)), np.bool_)
    for row, each in enumerate(classes):
        present[row, [columns[name] for name in each]] = True
    return names, present


def _report(
    names: Sequence[str], assigned: npt.NDArray[np.int64], classes: Sequence[Sequence[str]]
) -> dict[str, dict[str, int]]:
    """Count for each split all images, and the images with each class."""
    found, present = _presence(classes)
    report = {}
    for number, split in enumerate(names):
        own = present[assigned == number]
        images = own.sum(axis=0).tolist()
        report[split] = {"images": len(own), **dict(zip(found, images, strict=True))}
    return report
