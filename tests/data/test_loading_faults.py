"""Damaged images, transforms that fail, workers that die or should."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rectangles import (
    contents,
    evaluation,
    training,
)
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data.annotations import Annotations
from data.errors import InputError, WorkerDiedError
from data.packing import PackedBatch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def damaged(dataset: tuple[Path, Annotations], tmp_path: Path) -> tuple[Path, Annotations]:
    """The same pictures, of which 2 is cut off."""
    root, annotations = dataset
    (tmp_path / "train").mkdir()
    for file in annotations.files:
        raw = (root / str(file)).read_bytes()
        raw = raw[:300] if str(file) == "train/2.png" else raw
        (tmp_path / str(file)).write_bytes(raw)
    return tmp_path, annotations


@pytest.mark.parametrize("workers", [0, 2])
def test_an_input_error_arrives_as_it_was_raised(
    damaged: tuple[Path, Annotations], workers: int
) -> None:
    with (
        pytest.raises(
            InputError, match=r"^\S*2\.png: the image is truncated after 300 bytes; \S+ the"
        ),
        training(damaged, workers=workers) as loader,
    ):
        list(loader.epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_replaced_and_named_once(
    damaged: tuple[Path, Annotations], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    with training(damaged, workers=workers, on_damaged="skip") as loader:
        epochs = [contents(loader.epoch(epoch)) for epoch in (0, 1)]
        (message,) = caplog.messages
        assert re.match(r"skipping damaged image: .*2\.png: .* truncated after \d+ bytes$", message)
    with training(damaged, on_damaged="skip") as loader:
        assert [contents(loader.epoch(epoch)) for epoch in (0, 1)] == epochs
    rows = [row for batch in epochs[0] for row in batch[0]]
    assert 2 not in rows
    assert set(rows) == set(range(9)) - {2}


def test_more_damaged_images_than_allowed_stop_the_run(
    damaged: tuple[Path, Annotations],
) -> None:
    (damaged[0] / "train/5.png").write_bytes(b"")
    with (
        training(damaged, on_damaged="skip", max_damaged=1) as loader,
        pytest.raises(InputError, match=r"png: .*more than data\.max_damaged=1 images"),
    ):
        list(loader.epoch(0))


def test_evaluation_leaves_a_damaged_image_out_and_names_it(
    damaged: tuple[Path, Annotations], caplog: pytest.LogCaptureFixture
) -> None:
    with evaluation(damaged, on_damaged="skip", batch_size=1) as loader:
        batches = list(loader)
        assert "2.png" in caplog.text
        assert sorted(row for batch in batches for row in batch.indices) == [0, 1, 3, 4, 5, 6, 7, 8]
        assert [row for batch in batches for row in batch.left_out] == [2]
    with evaluation(damaged) as loader, pytest.raises(InputError, match=r"2\.png"):
        list(loader)


def test_a_transform_that_fails_names_the_image(dataset: tuple[Path, Annotations]) -> None:
    crop = [{"RandomCrop": {"height": 500, "width": 500}}]
    with (
        training(dataset, augment=crop) as loader,
        pytest.raises(InputError, match=r"train/\d\.png: data\.augment: CropSizeError"),
    ):
        list(loader.epoch(0))


def children_of(process: int) -> set[int]:
    children: set[int] = set()
    for thread in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has just ended
            children.update(map(int, (thread / "children").read_text().split()))
    return children


linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")


@linux
def test_a_worker_that_is_killed_is_reported_as_dead(dataset: tuple[Path, Annotations]) -> None:
    before = children_of(os.getpid())
    with training(dataset, workers=1, repeat=50) as loader:
        batches = loader.epoch(0)
        next(batches)
        (worker,) = children_of(os.getpid()) - before
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"died|killed"):
            list(batches)


@linux
def test_a_lost_worker_is_reported_once(
    dataset: tuple[Path, Annotations], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_it(_: Any) -> None:
        os.kill(worker, signal.SIGKILL)
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    before = children_of(os.getpid())
    with training(dataset, workers=1, repeat=50) as loader:
        batches = loader.epoch(0)
        next(batches)
        (worker,) = children_of(os.getpid()) - before
        monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__next__", lose_it)
        with pytest.raises(WorkerDiedError, match="reset by peer"):
            next(batches)
        time.sleep(0.5)  # PyTorch's SIGCHLD handler would raise here


def too_many_files(*_: Any) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_batch_that_a_worker_cannot_send_is_not_waited_for(
    dataset: tuple[Path, Annotations],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(PackedBatch, "__reduce__", too_many_files)
    with (
        training(dataset, workers=1) as loader,
        pytest.raises(WorkerDiedError, match="a data-loading worker process died"),
    ):
        next(loader.epoch(0))
    assert "cannot send its batch: [Errno 24] Too many open files" in capfd.readouterr().err


@linux
def test_closing_ends_the_others_where_the_loss_of_a_worker_is_noticed_only_then(
    dataset: tuple[Path, Annotations], monkeypatch: pytest.MonkeyPatch
) -> None:
    def notice(_: Any) -> None:
        monkeypatch.undo()
        # What PyTorch's SIGCHLD handler raises; when it runs is up to the kernel.
        raise RuntimeError(f"DataLoader worker (pid {killed}) is killed by signal: Killed. ")

    before = children_of(os.getpid())
    with training(dataset, workers=2, repeat=50) as loader:
        next(loader.epoch(0))
        killed, _ = children_of(os.getpid()) - before
        monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", notice)
        loader.close()
        assert children_of(os.getpid()) <= before


@linux
def test_closing_ends_all_workers(dataset: tuple[Path, Annotations]) -> None:
    before = children_of(os.getpid())
    with training(dataset, workers=2) as loader:
        next(loader.epoch(0))
        assert len(children_of(os.getpid()) - before) == 2
    assert children_of(os.getpid()) <= before
    loader.close()


PROGRAM = """
    import os, signal, sys, time
    from pathlib import Path
    from data.formats.coco import load_coco
    from data.config import DataConfig
    from data.loading import build_train_loader

    if __name__ == "__main__":
        root = Path(sys.argv[1])
        config = DataConfig(format="coco", root=root, batch_size=2, workers=2, repeat=20)
        annotations = load_coco(root, "train")
        loader = build_train_loader(
            config, annotations, seed=0, rank=0, world_size=1, with_masks=False
        )
        signal.signal(signal.SIGTERM, lambda *_: print("told to end", flush=True))
        batches = loader.epoch(0)
        next(batches)
        print("ready", flush=True)
        time.sleep(1)
        print(len(list(batches)), flush=True)
        # and ends without closing the loader
"""


START_METHOD = """
    import multiprocessing, sys
    from pathlib import Path
    from data.formats.coco import load_coco
    from data.config import DataConfig
    from data.errors import InputError
    from data.loading import build_eval_loader

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[2])
        root = Path(sys.argv[1])
        for cache in ("none", "memory"):
            config = DataConfig(format="coco", root=root, batch_size=9, workers=1, cache=cache)
            try:
                loader = build_eval_loader(config, load_coco(root, "train"), rank=0, world_size=1)
            except InputError as error:
                print(error)
                continue
            print(sum(len(batch) for batch in loader))
            loader.close()
"""
REFUSED = "data.cache: memory needs forked worker processes; set none"


@linux
@pytest.mark.parametrize(
    ("method", "answers"),
    [("fork", ["9", "9"]), ("forkserver", ["9", "9"]), ("spawn", ["9", REFUSED])],
)
def test_workers_live_whatever_the_start_method(
    method: str, answers: list[str], dataset: tuple[Path, Annotations], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(START_METHOD))
    ended = subprocess.run(
        [sys.executable, str(program), str(dataset[0]), method],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.stdout.splitlines() == answers, ended.stderr


@linux
def test_workers_outlive_a_sigterm_to_the_group_and_not_their_parent(
    dataset: tuple[Path, Annotations], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    process = subprocess.Popen(
        [sys.executable, str(program), str(dataset[0])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    workers = children_of(process.pid)
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert output.split("\n")[:2] == ["told to end", "89"]
    assert (process.returncode, errors) == (0, "")
    time.sleep(0.1)
    assert len(workers) == 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
