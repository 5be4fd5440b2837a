"""Run the checks and benchmarks that need a CUDA GPU.

    python scripts/check_gpu.py                      # all, about three minutes on an H200
    python scripts/check_gpu.py --only kernels waits
    python scripts/check_gpu.py --config configs/bccd/retinanet.yaml --only training

kernels: each against the plain formulas, on random input. parity: a detector on the GPU against
itself on the CPU: losses, gradients, detections. recorded: a training pass as a CUDA graph against
the eager pass. detection: an inference pass likewise. statistics: those of batch norm after
recorded passes. bf16: losses and gradients are finite. exchange: NCCL with one rank. waits: a step
with ALWA never makes the host wait. benchmarks: steps against torchvision's. training: train.py on
--config, and evaluate.py of its checkpoint on the GPU and on the CPU. Prints a line for each check;
the exit status is 1 if one failed, 2 without a GPU.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine.process.allocator import keep_freed_memory
from engine.process.threads import limit_spinning

if __name__ == "__main__":
    limit_spinning()  # torch reads it when it is imported
    keep_freed_memory()

import argparse
import json
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence

import torch

from engine.process.standard_output import INTERRUPTED, status_of_tool, tool
from scripts import benchmark
from scripts.benchmarks.machine import describe_machine, in_words
from scripts.gpu_checks.parity import check_parity
from scripts.gpu_checks.steps import (
    check_bf16,
    check_exchange,
    check_no_waits,
    check_recorded,
    check_recorded_detection,
    check_statistics,
)

DETECTORS = ("retinanet", "faster_rcnn", "mask_rcnn")
CUDA = torch.device("cuda")
LARGEST_MAP_DIFFERENCE = 0.01  # between two devices: rounding moves scores near each other

STEP = "step --device cuda --size 800 800 --boxes 8 --repeats 15"
BENCHMARKS = (
    *(
        f"{STEP} --detector {detector} --batch {batch} {precision}"
        for detector in DETECTORS
        for batch in (2, 4)
        for precision in ("", "--amp bf16")
    ),
    f"{STEP} --amp bf16 --peer-amp bf16",
    f"{STEP} --batch 32 --amp bf16 --peer-amp bf16",
    "losses --device cuda --boxes-list 8 100 300 --batches 2 16",
    "weighting --device cuda --size 800 800 --amp bf16 --step-repeats 11",
    "inference --device cuda --images 0",
    "inference --device cuda --images 0 --detector faster_rcnn",
)


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected checks."""
    checks = _checks()
    options = _parser(list(checks)).parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was checked", file=sys.stderr)
        return 2
    print(in_words(describe_machine(CUDA)), flush=True)
    failed = [name for name in options.only if not _run(name, checks[name](options))]
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


def _run(name: str, lines: Iterator[str]) -> bool:
    """Print the lines of a check; return False if it fails."""
    try:
        for line in lines:
            print(f"{name}: {line}", flush=True)
    except (Exception, SystemExit):
        traceback.print_exc(file=sys.stdout)
        print(f"{name}: FAILED", flush=True)
        return False
    return True


def _checks() -> dict[str, Callable[[argparse.Namespace], Iterator[str]]]:
    return {
        "kernels": lambda _: _kernels(),
        "parity": lambda o: (f"{d}: {check_parity(d, o.backbone, CUDA)}" for d in DETECTORS),
        "recorded": lambda o: (f"{d}: {check_recorded(d, o.backbone, CUDA)}" for d in DETECTORS),
        "detection": lambda o: (
            f"{d}: {check_recorded_detection(d, o.backbone, CUDA)}" for d in DETECTORS
        ),
        "statistics": lambda _: iter([check_statistics(CUDA)]),
        "bf16": lambda o: (f"{d}: {check_bf16(d, o.backbone, CUDA)}" for d in DETECTORS),
        "exchange": lambda o: iter([check_exchange(o.backbone, CUDA)]),
        "waits": lambda o: (f"{d}: {check_no_waits(d, o.backbone, CUDA)}" for d in DETECTORS),
        "benchmarks": lambda _: _benchmarks(),
        "training": _training,
    }


def _kernels() -> Iterator[str]:
    from scripts.gpu_checks.kernels import check_kernels  # it needs Triton

    yield from check_kernels(CUDA)


def _benchmarks() -> Iterator[str]:
    for command in BENCHMARKS:
        yield f"python scripts/benchmark.py {command}"
        status = benchmark.main(command.split())
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        if status:
            raise SystemExit(f"exited with status {status}")
        torch.cuda.empty_cache()


def _training(options: argparse.Namespace) -> Iterator[str]:
    """Run a whole training from the command line and score it on either device."""
    for config in options.config:
        with tempfile.TemporaryDirectory() as folder:
            overrides = [f"train.output={folder}", "train.name=run", *options.overrides]
            _python("train.py", "--config", str(config.resolve()), *overrides)
            log = Path(folder, "run", "train.log").read_text(encoding="utf-8")
            yield f"{config}: {log.strip().splitlines()[-1]}"
            found = {}
            for device in ("cuda", "cpu"):
                output = Path(folder, f"{device}.json")
                words = f"{folder}/run/last.pt", f"train.device={device}", "--output", str(output)
                yield f"{config} on {device}: {_python('evaluate.py', *words)}"
                found[device] = json.loads(output.read_text())["voc"]["area"]["mAP"]
            if not abs(found["cuda"] - found["cpu"]) <= LARGEST_MAP_DIFFERENCE:
                raise SystemExit(f"{config}: mAP differs: {found}")


def _python(*command: str) -> str:
    """Run a program of this project and return its output.

    Raises:
        CalledProcessError: the program failed.
    """
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return result.stdout


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--backbone", choices=benchmark.BACKBONES, default="resnet50")
    parser.add_argument(
        "--config",
        type=Path,
        nargs="+",
        default=[ROOT / "configs/bccd/retinanet.yaml"],
        help="configs of the training check",
    )
    parser.add_argument("--overrides", nargs="+", default=[], help="of configs, key.path=value")
    return parser


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
