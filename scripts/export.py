"""Export a trained detector as ONNX, TorchScript or safetensors, and verify the files.

    python scripts/export.py runs/my_run/best.pt
    python scripts/export.py runs/my_run/best.pt --formats onnx --images a.jpg b.jpg --json

ONNX and TorchScript take one image of any size, uint8 RGB (3, height, width), resized as in
training; normalization, anchors and NMS are included. safetensors holds only the weights, for
detector.weights or another program. Each file is run on a few images (of the validation split, or
noise if they are not available) and compared with the detector; the exit code is 1 if they differ,
or if there are no detections to compare.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.process.standard_output import is_watched, status_of_tool, tool
from engine.process.threads import limit_spinning

limit_spinning()  # torch reads it when it is imported

# ruff: noqa: E402
import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.build import build_annotations
from data.errors import InputError
from data.images import DamagedImageError, read_image, resize_image, resized_size
from engine.config import split_words
from engine.trained import Trained, load_trained
from scripts.exporting.parity import compare
from scripts.exporting.writing import write_onnx, write_safetensors, write_torchscript

ENDINGS = {"onnx": ".onnx", "torchscript": ".torchscript", "safetensors": ".safetensors"}
IMAGES = 3
LIMITS = (
    "batches: the number of detections varies by image, which a trace cannot represent",
    "resizing, thresholding masks and pasting them into the image, which the caller must do",
    "torch.export (and ONNX by dynamo), which cannot trace these detectors: torchvision's "
    "batched_nms branches on the number of boxes",
    "torchvision's operators: import torchvision before loading TorchScript",
    "training, and test-time flips (evaluate.flip)",
)


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    files, overrides = split_words(options.words)
    if len(files) != 1:
        raise InputError("give exactly one checkpoint")
    # --images takes all words up to the next option, overrides too.
    images, behind = split_words(options.images or [])
    options.images, overrides = [Path(image) for image in images], [*overrides, *behind]
    # a trace keeps the device that it was made on
    trained = load_trained(files[0], ["train.device=cpu", *overrides])
    folder = options.output or Path(files[0]).parent
    report = export(trained, folder / Path(files[0]).stem, options)
    print(json.dumps(report, indent=2) if options.json else format_report(report))
    return int(any(not each["holds"] for each in report["files"].values()))


def export(trained: Trained, stem: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write and verify each file; return the report."""
    traced = set(options.formats) - {"safetensors"}
    images = check_images(trained, options.images) if traced else []
    report: dict[str, Any] = {"files": {}, "not_exported": list(LIMITS)}
    hidden = not is_watched()
    for kind in tqdm(options.formats, "export", delay=2, leave=False, disable=hidden):
        path = stem.with_name(stem.name + ENDINGS[kind])
        if kind == "safetensors":
            result: dict[str, Any] = _check_weights(trained, path)
        else:
            write = write_onnx if kind == "onnx" else write_torchscript
            result = compare(trained, write(trained, images[0], path), images).as_dict()
        report["files"][str(path)] = {"format": kind, "bytes": path.stat().st_size, **result}
    return report


def _check_weights(trained: Trained, path: Path) -> dict[str, Any]:
    written = write_safetensors(trained, path)
    own = trained.detector.state_dict()
    equal = own.keys() == written.keys() and all(
        torch.equal(own[name].cpu(), written[name]) for name in own
    )
    return {"tensors": len(written), "holds": equal}


def check_images(trained: Trained, named: Sequence[Path] | None) -> list[Tensor]:
    """Return ``(3, H, W)`` uint8 images: the given ones, or of the validation split, or noise.

    They always include a black image and one of another shape than the first. With
    ``data.on_damaged: skip`` damaged images are reported and skipped.

    Raises:
        DamagedImageError: an image is damaged, and ``data.on_damaged`` is ``raise``.
        InputError: an image cannot be read.
    """
    data = trained.config.data
    bounds, paths = data.image_size, named or _validation_images(trained)
    images = []
    for path in paths:
        try:
            pixels = read_image(path, None, data.max_image_pixels, data.exif == "ignore")
        except DamagedImageError as error:
            if data.on_damaged == "raise":
                raise
            print(f"export.py: skipped: {error.complaint}", file=sys.stderr)
            continue
        size = resized_size((pixels.shape[0], pixels.shape[1]), bounds)
        images.append(torch.from_numpy(resize_image(pixels, size)).permute(2, 0, 1).contiguous())
    if not images:
        if paths:
            print("export.py: compared on noise: all images are damaged", file=sys.stderr)
        noise = torch.Generator().manual_seed(0)
        shape = (3, min(bounds), min(max(bounds), 2 * min(bounds)))
        images.append(torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8))
    height, width = images[0].shape[1:]
    part = images[0][:, : max(1, height * 2 // 3), : max(1, width // 2)]
    images.append(part.contiguous())
    return [*images, torch.zeros_like(images[0])]


def _validation_images(trained: Trained) -> list[Path]:
    """Return a few image files of the validation split; none, with a warning, if unavailable."""
    data = trained.config.data
    try:
        if not data.root.is_dir():  # or shapes would be drawn there
            raise InputError(f"{data.root}: folder not found")
        annotations = build_annotations(data, data.val, trained.classes, check_images=False)
        files = [data.root / str(name) for name in annotations.files[:IMAGES]]
        here = [file for file in files if file.is_file()]
        if not here:
            raise InputError(f"{', '.join(map(str, files))}: file not found")
    except InputError as error:
        print(
            f"export.py: compared on noise: validation images not available ({error}); give others "
            "with --images",
            file=sys.stderr,
        )
        return []
    return here


def format_report(report: dict[str, Any]) -> str:
    """Format what was written, how well it agrees, and what is not exported."""
    lines = []
    for path, each in report["files"].items():
        lines.append(f"{path}: {each['bytes'] / 2**20:.1f} MiB")
        if each["format"] == "safetensors":
            lines.append(f"  {each['tensors']} tensors, {_verdict(each)}")
            continue
        masks = "" if each["mask"] is None else f", masks {each['mask']:.1e}"
        lines.append(
            f"  {each['images']} images, {each['detections']} detections, {each['unmatched']} "
            f"unmatched; largest differences: boxes {each['box']:.1e} px, scores "
            f"{each['score']:.1e}{masks}: {_verdict(each)}"
        )
    return "\n".join([*lines, "not exported:", *(f"  {limit}" for limit in LIMITS)])


def _verdict(each: dict[str, Any]) -> str:
    if each["holds"]:
        return "equal"
    if each.get("detections") == 0 == each["unmatched"]:
        return (
            "NOT COMPARED, no detections in these images, or only equal scores; give others with "
            "--images"
        )
    return "NOT EQUAL, do not use this file"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="CHECKPOINT | key.path=value",
        help="a checkpoint, and overrides",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=list(ENDINGS),
        default=list(ENDINGS),
        help="formats to write (all); put overrides before it",
    )
    parser.add_argument("--output", type=Path, help="output folder (that of the checkpoint)")
    parser.add_argument(
        "--images", nargs="+", help="images to verify with (of the validation split)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
