"""Download, inspect, validate, convert and split detection datasets.

    python scripts/datasets.py download voc2007
    python scripts/datasets.py inspect datasets/VOCdevkit --plot voc.png --write-config my.yaml
    python scripts/datasets.py validate my_data --fix my_data_repaired
    python scripts/datasets.py convert my_data my_data_as_coco
    python scripts/datasets.py split my_data --fractions 0.8 0.2 --names train val

Datasets are VOC (Annotations, JPEGImages, ImageSets/Main) or COCO (annotations/instances_*.json and
a folder of images for each split); the format is detected. Exit codes: 0 success, 1 validate found
errors, 2 unusable input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.errors import InputError
from engine.process.standard_output import status_of_tool, tool
from scripts.dataset_tools.archives import DATASETS, Archive
from scripts.dataset_tools.coco_checks import check_coco
from scripts.dataset_tools.conversion import convert
from scripts.dataset_tools.downloading import fetch
from scripts.dataset_tools.layout import Layout, recognize
from scripts.dataset_tools.output_folder import check_output
from scripts.dataset_tools.plotting import plot_dataset
from scripts.dataset_tools.problems import count_by_severity, format_problems, problems_as_json
from scripts.dataset_tools.repair import write_repaired
from scripts.dataset_tools.split_names import choose_roles, doubts
from scripts.dataset_tools.splitting import check_fractions, split_coco, split_voc
from scripts.dataset_tools.starting_config import check_config, write_config
from scripts.dataset_tools.statistics import describe
from scripts.dataset_tools.suggestions import choose_detector, suggest
from scripts.dataset_tools.tables import format_statistics, format_suggestion
from scripts.dataset_tools.unpacking import unpack
from scripts.dataset_tools.voc_checks import check_voc
from scripts.figures import check_figure
from scripts.number_types import at_least
from scripts.tables import counted, format_table


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    return int(options.run(options))


def run_download(options: argparse.Namespace) -> int:
    """Download, verify and unpack the archives of one dataset."""
    fetched = [_download_archive(archive, options) for archive in DATASETS[options.dataset]]
    if options.json:
        print(json.dumps(fetched, indent=2))
    return 0


def _download_archive(archive: Archive, options: argparse.Namespace) -> dict[str, str | int]:
    target = options.root / archive.folder
    path, md5 = fetch(archive, options.root / "archives", options.base)
    _say(options, f"{path}: {path.stat().st_size} bytes, MD5 {md5} is correct")
    files = 0
    if not options.keep_packed:
        files = unpack(path, target)
        _say(options, f"{target}: {files} files")
        if options.remove_archives:
            path.unlink()
    return {"archive": archive.name, "md5": md5, "files": files}


def run_inspect(options: argparse.Namespace) -> int:
    """Print the statistics of a dataset and suggested training settings."""
    if options.plot:
        check_figure(options.plot)
    if options.write_config:
        check_config(options.write_config)
    layout = _recognize(options)
    chosen = layout.choose(options.splits)
    train, val = choose_roles(chosen)
    parts = {split: layout.load(split) for split in chosen}
    annotations = layout.join(parts.values())
    numbers = describe(annotations, parts)
    detector = "retinanet" if options.from_scratch else choose_detector(parts[train])
    suggestion = suggest(annotations, detector)
    if options.plot:
        plot_dataset(annotations, f"{layout.root} ({', '.join(chosen)})", options.plot)
    if options.json:
        head = {"format": layout.format, "root": str(layout.root)}
        found = suggestion and suggestion.as_dict()
        print(json.dumps({**head, **numbers, "suggestion": found}, indent=2))
    else:
        print(f"{layout.root}: {layout.format.upper()}, {counted(len(chosen), 'split')}\n")
        print(format_statistics(numbers))
        print(f"\n{format_suggestion(suggestion)}")
    if options.write_config:
        how = (suggestion, options.from_scratch)
        write_config(options.write_config, layout, parts, train, val, *how)
        _say(options, f"train on {train}, validate on {val}")
        for doubt in doubts(train, val):
            print(f"datasets.py: warning: {doubt}", file=sys.stderr)
    for path in (options.plot, options.write_config):
        if path:
            _say(options, f"written: {path}")
    return 0


def run_validate(options: argparse.Namespace) -> int:
    """List every problem; the exit code is 1 if there is an error."""
    layout = _recognize(options)
    if options.fix:
        check_output(layout.root, options.fix)
    elif options.hardlink:
        raise InputError("--hardlink: only applies to a repaired copy; add --fix")
    chosen = layout.choose(options.splits)
    check = check_voc if layout.format == "voc" else check_coco
    problems = check(layout, chosen, not options.skip_pixels)
    _say(options, format_problems(problems, options.most))
    extra: dict[str, Any] = {"root": str(layout.root), "format": layout.format}
    refused = None
    if options.fix:
        try:
            kept = write_repaired(layout, chosen, problems, options.fix, options.hardlink)
            extra["repaired"] = {"folder": str(options.fix), **asdict(kept)}
            _say(options, f"repaired copy: {options.fix} ({kept})")
        except InputError as error:
            refused = error
            extra["not_repaired"] = str(error)
    if options.json:
        print(problems_as_json(problems, extra))
    if refused:
        raise refused
    counts = count_by_severity(problems)
    return int(counts["errors"] > 0 or (options.strict and counts["warnings"] > 0))


def run_convert(options: argparse.Namespace) -> int:
    """Write the dataset in the other format."""
    layout = recognize(options.path, options.zero_based, options.follow_links)
    chosen = layout.choose(options.splits)
    counts = convert(layout, chosen, options.output, options.hardlink)
    if options.json:
        print(json.dumps(counts))
        return 0
    other = "COCO" if layout.format == "voc" else "VOC"
    print(
        f"{options.output}: {other}, {counted(counts['splits'], 'split')}, "
        f"{counted(counts['images'], 'image')}, {counted(counts['objects'], 'object')}"
    )
    if counts["missing_images"]:
        print(f"skipped {counted(counts['missing_images'], 'missing image file')}")
    if counts["unlisted"]:
        print(f"skipped {counted(counts['unlisted'], 'annotation file')} that no split lists")
    return 0


def _recognize(options: argparse.Namespace) -> Layout:
    """The layout of a dataset that is only read."""
    layout = recognize(options.path, options.zero_based, options.follow_links)
    if options.zero_based and layout.format == "coco":
        raise InputError("--zero-based: only applies to VOC, and this dataset is COCO; drop it")
    return layout


def run_split(options: argparse.Namespace) -> int:
    """Divide a dataset, or one split of it."""
    check_fractions(options.names, options.fractions)
    layout = recognize(options.path, follow_links=options.follow_links)
    missing: dict[str, int] = {}
    how = (options.source, options.names, options.fractions, options.seed)
    if layout.format == "voc":
        if options.output:
            raise InputError("--output: VOC splits are list files inside the dataset; drop it")
        if options.hardlink:
            raise InputError("--hardlink: splitting VOC copies no images; drop it")
        report = split_voc(layout, *how)
    else:
        if not options.output:
            raise InputError("--output: required for COCO; give a new folder")
        report, missing = split_coco(layout, *how, options.output, options.hardlink)
    if options.json:
        print(json.dumps(_with_missing(report, missing), indent=2))
        return 0
    header = ["images with", *report]
    keys = list(next(iter(report.values())))
    print(format_table(header, [[key, *(each[key] for each in report.values())] for key in keys]))
    if any(missing.values()):
        print(f"skipped {counted(sum(missing.values()), 'missing image file')}")
    return 0


def _with_missing(
    report: dict[str, dict[str, int]], missing: dict[str, int]
) -> dict[str, dict[str, int]]:
    """Add missing images to ``split``'s report; VOC lists are made without checking images."""
    return {
        split: {**numbers, **({"missing_images": missing[split]} if missing else {})}
        for split, numbers in report.items()
    }


def _say(options: argparse.Namespace, line: str) -> None:
    if not options.json:
        print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_download(commands)
    _add_inspect(commands)
    _add_validate(commands)
    _add_convert(commands)
    _add_split(commands)
    return parser


def _add_download(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("download", help="download, verify and unpack VOC or COCO")
    command.set_defaults(run=run_download)
    command.add_argument("dataset", choices=sorted(DATASETS))
    command.add_argument(
        "--root", type=Path, default=Path("datasets"), help="folder for datasets (datasets)"
    )
    command.add_argument("--base", help="base URL of the archives, instead of the publisher's")
    archives = command.add_mutually_exclusive_group()
    archives.add_argument(
        "--keep-packed", action="store_true", help="download and verify, but do not unpack"
    )
    archives.add_argument(
        "--remove-archives", action="store_true", help="delete each archive after unpacking"
    )
    _add_json(command)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("inspect", help="statistics and suggested training settings")
    command.set_defaults(run=run_inspect)
    _add_dataset(command)
    _add_follow_links(command)
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw six plots (.png, .svg)")
    command.add_argument(
        "--write-config", type=Path, metavar="FILE", help="write a starting config"
    )
    command.add_argument(
        "--from-scratch",
        action="store_true",
        help="suggest a small detector without pretrained weights",
    )
    _add_json(command)


def _add_validate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("validate", help="list every problem, by file and object")
    command.set_defaults(run=run_validate)
    _add_dataset(command)
    _add_follow_links(command)
    command.add_argument(
        "--fix", type=Path, metavar="FOLDER", help="write a repaired copy into a new folder"
    )
    command.add_argument(
        "--skip-pixels", action="store_true", help="do not decode the images (much faster)"
    )
    command.add_argument("--strict", action="store_true", help="also exit with 1 on warnings")
    command.add_argument(
        "--most",
        type=at_least(0),
        default=50,
        help="maximum number of problems to print (50; 0: all)",
    )
    _add_hardlink(command)
    _add_json(command)


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("convert", help="convert VOC to COCO or COCO to VOC, losslessly")
    command.set_defaults(run=run_convert)
    _add_dataset(command)
    command.add_argument("output", type=Path, help="a new folder")
    _add_follow_links(command)
    _add_hardlink(command)
    _add_json(command)


def _add_split(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("split", help="random splits, stratified by class")
    command.set_defaults(run=run_split)
    command.add_argument("path", type=Path, help="root of the dataset")
    command.add_argument("--source", help="split to divide (VOC: all annotation files)")
    command.add_argument(
        "--names", nargs="+", default=["train", "val"], help="names of the new splits (train val)"
    )
    command.add_argument(
        "--fractions",
        nargs="+",
        type=float,
        default=[0.8, 0.2],
        help="fraction for each split (0.8 0.2)",
    )
    command.add_argument("--seed", type=at_least(0), default=0, help="random seed (0)")
    command.add_argument("--output", type=Path, help="COCO: a new folder for the divided dataset")
    _add_follow_links(command)
    _add_hardlink(command)
    _add_json(command)


def _add_dataset(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", type=Path, help="root of the dataset, or a COCO instances_*.json")
    command.add_argument("--splits", nargs="+", metavar="SPLIT", help="use only these splits (all)")
    command.add_argument(
        "--zero-based",
        action="store_true",
        help="VOC boxes are zero-based corners, not the devkit's 1-based pixels",
    )


def _add_follow_links(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--follow-links",
        action="store_true",
        help="accept links to files outside the root, like data.follow_links",
    )


def _add_hardlink(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--hardlink", action="store_true", help="hard-link images instead of copying them"
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the result as JSON")


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
