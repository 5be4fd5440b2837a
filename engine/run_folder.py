"""The folder of one run: its config, its checkpoints, its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError
from engine.atomic_file import link_atomically, write_atomically
from engine.checkpoint import save_checkpoint
from engine.config import Config, dump_config
from engine.distributed import Ranks
from engine.evaluator import write_metrics
from engine.state import TrainState

CHECKPOINTS = ("last.pt", "previous.pt", "best.pt")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it makes.

    Attributes:
        path: the folder.
        identity: what every checkpoint carries beside the state: config, class names, global batch.
    """

    path: Path
    ranks: Ranks
    identity: Mapping[str, Any]

    def write_config(self) -> None:
        """Write ``config.yaml``: when nothing can refuse the config any more."""
        if self.ranks.is_main:
            text = dump_config(self.identity["config"])
            write_atomically(self.path / "config.yaml", text.encode())

    def save(self, state: TrainState) -> None:
        """Write ``last.pt``. Every rank must call it: the ranks share their window of losses."""
        state.weighting.share_window()
        if self.ranks.is_main:
            save_checkpoint(self.path / "last.pt", {**state.state_dict(), **self.identity})

    def restore_last(self, source: Path) -> None:
        """Make ``last.pt`` what the run goes on from, where it is missing or damaged: it becomes
        ``best.pt`` or ``previous.pt`` before the next one is written. Every rank must call it."""
        self.ranks.wait()  # all have read
        if self.ranks.is_main and source.name != "last.pt":
            link_atomically(source, self.path / "last.pt")

    def keep_best(self) -> None:
        """Make ``best.pt`` what ``last.pt`` is now."""
        link_atomically(self.path / "last.pt", self.path / "best.pt")

    def write_scores(self, scores: dict[str, Any]) -> None:
        """Write ``metrics.json``: the newest scores of the validation split."""
        write_metrics(self.path / "metrics.json", scores)


def holds_checkpoint(path: Path) -> bool:
    """Whether a run's folder holds a checkpoint, readable or not."""
    return any((path / name).exists() for name in CHECKPOINTS)


def open_run_folder(config: Config, ranks: Ranks, resume: bool) -> Path:
    """Make the run's folder, or find that of the run to go on with.

    Raises:
        InputError: it already holds a checkpoint and the run is not a resumed one, it is not there
            and the run is, or it cannot be written.
    """
    path = config.run_folder
    if resume and not path.is_dir():
        raise InputError(f"{path}: there is no such run to --resume; check train.name")
    if not resume and holds_checkpoint(path):
        raise InputError(
            f"{path}: already holds a checkpoint; go on with --resume, or choose another "
            "train.name or train.output"
        )
    ranks.wait()  # every rank has looked before the main one writes
    if ranks.is_main:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path
