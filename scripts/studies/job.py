"""A run that a study needs, and its location."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scripts.studies.ledger import keep, results_folder
from scripts.studies.run import Run, Stage, read_scores, scores_file, stage


@dataclass(frozen=True)
class Job:
    """A run that a study needs, its location, and the split to score its last checkpoint on.

    Attributes:
        runs: the folder of all runs.
        ledger: folder with kept runs of other days and machines; None: no ledger.
    """

    run: Run
    runs: Path
    split: str
    ledger: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder in which it is trained."""
        return self.run.folder(self.runs)

    @property
    def results(self) -> Path:
        """The folder of its results, present or future."""
        return results_folder(self.run, self.split, self.runs, self.ledger)

    @property
    def key(self) -> tuple[Path, str]:
        """The key that jobs doing the same work share."""
        return self.folder, self.split

    @property
    def stage(self) -> Stage:
        """The progress of the run.

        Raises:
            InputError: its folder holds a run with another config, or damaged scores.
        """
        reached = stage(self.run, self.results, self.split)
        if reached == "scored":
            read_scores(self.results, self.split)
        return reached

    def keep(self) -> bool:
        """Write its results to the ledger if it was scored here; return whether that changed it.

        Raises:
            InputError: its folder holds a run with another config, or cannot be read or written.
        """
        is_scored = (
            scores_file(self.folder, self.split).is_file()  # an unfinished run may be in its folder
            and stage(self.run, self.folder, self.split) == "scored"
        )
        if self.ledger is None or not is_scored:
            return False
        read_scores(self.folder, self.split)  # unreadable scores cannot be kept
        return keep(self.folder, self.split, self.run.folder(self.ledger))
