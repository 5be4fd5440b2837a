"""Measure whether memory, open files, shared memory and iteration time stay constant.

    python scripts/measure_endurance.py
    python scripts/measure_endurance.py --iterations 1000 --parts 4

Trains a tiny RetinaNet on synthetic images of 32 x 32 pixels with two loader processes and monitors
it from outside: 10,000 iterations (an hour of a large detector at 2.8 iterations per second) in 40
epochs, evaluated and saved after each, with ALWA's windows, TensorBoard and metrics.jsonl. Prints a
row for each tenth of the run: the median time of an iteration, and the CPU time of the training
process per iteration, evaluations and saves included, which other programs disturb less. Reads
/proc, so Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.process.standard_output import status_of_tool, tool
from scripts.number_types import at_least

ROOT = Path(__file__).resolve().parents[1]
EPOCHS, BATCH = 40, 2
ROW = "{:>11} {:>12} {:>12} {:>10} {:>10} {:>12} {:>10} {:>12}"
TITLES = (
    "iterations", "main MB", "loaders MB", "files", "threads", "shared MB", "ms each", "CPU ms each"
)  # fmt: skip


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Train and monitor; the exit code is 1 if the training failed."""
    options = _parser().parse_args(arguments)
    iterations = options.iterations // EPOCHS * EPOCHS  # equally many per epoch
    with tempfile.TemporaryDirectory() as folder:
        messages = Path(folder) / "messages"
        with messages.open("w") as file:
            process = subprocess.Popen(
                training(Path(folder), iterations),
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
        try:
            watch(process, Path(folder) / "run", iterations, options.parts)
        finally:
            process.terminate()
            process.wait()
        if process.returncode:
            print(f"{messages.read_text()}exit status {process.returncode}", file=sys.stderr)
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--iterations",
        type=at_least(EPOCHS),
        default=10_000,
        help=f"rounded down to a multiple of {EPOCHS} (10000)",
    )
    parser.add_argument("--parts", type=at_least(1), default=10, help="rows of the table (10)")
    return parser


def training(folder: Path, iterations: int) -> list[str]:
    images = iterations // EPOCHS * BATCH
    small = [
        "detector.backbone=resnet18",
        "detector.fpn_channels=16",
        "detector.levels=[4, 5]",
        "detector.anchors.sizes=[8, 16]",
        "detector.retinanet.tower_depth=1",
        "data.image_size=[32, 32]",
        "data.shapes.image_size=[32, 32]",
        f"data.shapes.train_images={images}",
        "data.shapes.val_images=8",
        f"data.batch_size={BATCH}",
        "data.workers=2",
        "loss.weighting={type: alwa, interval: 50}",
        f"train.epochs={EPOCHS}",
        f"train.output={folder}",
        f"data.root={folder / 'shapes'}",
        "train.name=run",
        "train.log_every=1",
    ]
    config = ROOT / "configs" / "quickstart.yaml"
    return [sys.executable, "train.py", "--config", str(config), *small]


def watch(process: subprocess.Popen[bytes], run: Path, iterations: int, parts: int) -> None:
    """Print a row after each part of the iterations."""
    print(ROW.format(*TITLES), flush=True)
    log, done, offset, rates = run / "metrics.jsonl", 0, 0, list[float]()
    counted, spent = 0, 0.0
    for part in range(1, parts + 1):
        while done < part * iterations // parts - 1 and process.poll() is None:
            time.sleep(0.2)
            lines, offset = new_lines(log, offset)
            records = [json.loads(line) for line in lines]
            trained = [record for record in records if record["kind"] == "train"]
            rates += [BATCH / record["images_per_second"] for record in trained]
            done = trained[-1]["step"] if trained else done
        if process.poll() is not None:
            return
        spent_before, spent = spent, cpu_seconds(process.pid)
        times = (statistics.median(rates), (spent - spent_before) / (done - counted))
        counted = done
        print(ROW.format(done, *sizes_of(process.pid), *(f"{1000 * t:.1f}" for t in times)))
        sys.stdout.flush()
        rates.clear()
    process.wait()


def new_lines(path: Path, offset: int) -> tuple[list[str], int]:
    """Return the complete lines of a growing file after an offset, and the offset of their end."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    return whole.decode().splitlines(), offset + len(whole)


def sizes_of(pid: int) -> tuple[str, ...]:
    """Return memory of the process and its loaders, open files, threads and shared memory."""
    loaders = [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]
    shared = os.statvfs("/dev/shm")
    return (
        f"{own_mb(pid):.0f}",
        f"{sum(map(own_mb, loaders)):.0f}",
        str(sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in (pid, *loaders))),
        str(len(list(Path(f"/proc/{pid}/task").iterdir()))),
        f"{(shared.f_blocks - shared.f_bfree) * shared.f_frsize / 1e6:.1f}",
    )


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of the process, without its loaders."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def own_mb(pid: int) -> float:
    """Return the proportional memory: shared pages are divided among their processes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
