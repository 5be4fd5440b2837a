"""The folder of one run: its config, its checkpoints, its scores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError
from engine.checkpoint import RESUMED, load_latest, save_checkpoint
from engine.config import Config, dump_config
from engine.evaluation.scores import write_metrics
from engine.process.atomic_file import link_atomically, remove_unfinished, write_atomically
from engine.process.console import LOG
from engine.process.distributed import Ranks
from engine.process.locks import try_lock
from engine.state import TrainState

CHECKPOINTS = (*RESUMED, "best.pt")
LOCK_PAUSES = (0.1, 0.4, 1.0)  # seconds


@dataclass(frozen=True)
class RunFolder:
    """The output folder of a run.

    Attributes:
        path: the folder.
        identity: entries of every checkpoint besides the state: config, class names, global batch,
            ranks, number of training images, digests of both splits.
    """

    path: Path
    ranks: Ranks
    identity: Mapping[str, Any]

    def write_config(self) -> None:
        """Write ``config.yaml``, once all checks of the config have passed."""
        if self.ranks.is_main:
            text = dump_config(self.identity["config"])
            write_atomically(self.path / "config.yaml", text.encode())

    def save(self, state: TrainState) -> None:
        """Write ``last.pt``. Every rank must call it: the ranks share their window of losses."""
        state.weighting.share_window()
        if self.ranks.is_main:
            save_checkpoint(self.path / "last.pt", {**state.state_dict(), **self.identity})

    def restore_last(self, source: Path) -> None:
        """Replace a missing or damaged ``last.pt`` with the checkpoint that was resumed from.

        It becomes ``best.pt`` or ``previous.pt`` before the next one is written. Every rank must
        call it.
        """
        self.ranks.barrier()  # all have read
        if self.ranks.is_main and source.name != "last.pt":
            link_atomically(source, self.path / "last.pt")

    def keep_best(self) -> None:
        """Link or copy the current ``last.pt`` to ``best.pt``."""
        link_atomically(self.path / "last.pt", self.path / "best.pt")

    def write_scores(self, scores: dict[str, Any]) -> None:
        """Write ``metrics.json``: the latest scores of the validation split."""
        write_metrics(self.path / "metrics.json", scores)


def holds_checkpoint(path: Path) -> bool:
    """Whether a run's folder holds a checkpoint, readable or not."""
    return any((path / name).exists() for name in CHECKPOINTS)


def load_shared(path: Path, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Load the newest readable checkpoint of a run, the same on every rank. All must call it.

    Raises:
        InputError: none can be read, or ranks found different ones.
    """
    source, saved = load_latest(path)
    found = ranks.all_gather((source.name, saved["progress"]))
    if any(other != found[0] for other in found):
        names = [f"{name} of step {progress.get('step')}" for name, progress in found]
        raise InputError(
            f"--resume: {path}: the ranks found {', '.join(names)}: their machines do not see the "
            "same files (yet); start it again"
        )
    return source, saved


@contextmanager
def open_run_folder(config: Config, ranks: Ranks, *, resume: bool, requeue: bool) -> Iterator[Path]:
    """Create and lock the folder of a run, or lock that of the run to resume.

    Args:
        config: config of the run, which names the folder.
        ranks: the processes of the run.
        resume: whether the run must exist already.
        requeue: whether the run may exist already.

    Raises:
        InputError: it already holds a checkpoint and the run is new, it does not exist and the run
            is resumed, another run is training there, or it cannot be written.
    """
    path = config.run_folder
    with ExitStack() as stack:
        with ranks.main_first():
            if ranks.is_main:
                if resume and not os.path.isdir(path):
                    raise InputError(f"{path}: no such run to --resume; check train.name")
                stack.enter_context(_locked_folder(path))
                for name in CHECKPOINTS:
                    remove_unfinished(path / name)
                # Only now: a run that was training there may have saved before it ended.
                if holds_checkpoint(path) and not (resume or requeue):
                    cure = "choose another train.name or train.output"
                    if any((path / name).exists() for name in RESUMED):
                        cure = f"continue with --resume, or {cure}"
                    raise InputError(f"{path}: already holds a checkpoint; {cure}")
        yield path


@contextmanager
def _locked_folder(path: Path) -> Iterator[None]:
    """Create a folder and lock its ``train.log`` against other runs."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOG).open("ab")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    with file:
        # The loader processes of a killed run end a moment after it.
        for pause in (*LOCK_PAUSES, None):
            if try_lock(file):
                break
            if pause is None:
                raise InputError(
                    f"{path}: another run is training there; choose another train.name or "
                    "train.output, or stop it"
                )
            time.sleep(pause)
        yield
