"""A run that a study needs, and where it is or will be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scripts.studies.ledger import keep, results_folder
from scripts.studies.run import Run, Stage, read_scores, scores_file, stage


@dataclass(frozen=True)
class Job:
    """A run that a study needs, its place, and the split that its last checkpoint is scored on.

    Attributes:
        runs: the folder of all runs.
        ledger: where finished runs of other days and machines are looked up; None: nowhere.
    """

    run: Run
    runs: Path
    split: str
    ledger: Path | None = None

    @property
    def folder(self) -> Path:
        """Where it is trained."""
        return self.run.folder(self.runs)

    @property
    def results(self) -> Path:
        """Where its results are, or will be."""
        return results_folder(self.run, self.split, self.runs, self.ledger)

    @property
    def key(self) -> tuple[Path, str]:
        """What no second job needs to do."""
        return self.folder, self.split

    @property
    def stage(self) -> Stage:
        """How far it has come.

        Raises:
            InputError: its place holds a run under another config, or scores that are damaged.
        """
        reached = stage(self.run, self.results, self.split)
        if reached == "scored":
            read_scores(self.results, self.split)
        return reached

    def keep(self) -> bool:
        """Note its results in the ledger if it was scored here; whether that changed it.

        Raises:
            InputError: its place holds a run under another config, or it cannot be read or written.
        """
        is_scored = (
            scores_file(self.folder, self.split).is_file()  # else a beginning may lie in its place
            and stage(self.run, self.folder, self.split) == "scored"
        )
        if self.ledger is None or not is_scored:
            return False
        read_scores(self.folder, self.split)  # what cannot be read is nothing to keep
        return keep(self.folder, self.split, self.run.folder(self.ledger))
