"""One training run of a study: its folder and its progress."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from data.errors import InputError, shown, unreadable
from engine.checkpoint import RESUMED
from engine.config import Config, load_config, parse_config
from engine.process.atomic_file import write_atomically
from engine.resume import NEUTRAL_KEYS
from engine.strict_yaml import read_yaml

# Keys that do not affect what a run computes. The batch per process follows from the study's total
# batch and the number of processes; the table reports where these differ.
PLACE_KEYS = NEUTRAL_KEYS | {"data.batch_size", "data.root", "train.name"}
# Nor do these, as a study scores the last checkpoint; but with train.patience scores decide
# which that is.
EVALUATION_KEYS = frozenset({"evaluate.every"})
LONGEST_NAME = 235  # characters of a folder name about the overrides
RECORD, LOCK, LOG = "study.json", "study.lock", "study.log"

Stage = Literal["not run", "cut off", "trained", "scored", "failed"]


@dataclass(frozen=True)
class Run:
    """A config file with overrides, run by ``processes`` processes by default.

    Runs that compute the same share one folder, whichever study they belong to.
    """

    base: Path
    overrides: Mapping[str, Any]
    processes: int = 1

    @cached_property
    def config(self) -> Config:
        """The resolved config, with the batch size of each of ``processes`` processes.

        Raises:
            InputError: an override names a wrong key or value.
        """
        return load_config(self.base, self.arguments)

    @property
    def arguments(self) -> list[str]:
        """The overrides as command-line arguments."""
        return as_words(self.overrides)

    @property
    def total_batch(self) -> int:
        """Images in an iteration, of all processes together."""
        return self.config.global_batch(self.processes)

    @cached_property
    def name(self) -> str:
        """The run's differences from its base config, as a folder name."""
        base, own = _decisive(load_config(self.base)), _decisive(self.config)
        changed = {
            key: own[key]
            for key in sorted(own)
            if own[key] != base.get(key) and key != "train.seed"
        }
        parts = [
            f"{_short(key)}-{re.sub(r'[^0-9a-z.+]+', '-', str(value).lower()).strip('-')}"
            for key, value in changed.items()
        ]
        text, seed = "_".join(parts), f"seed-{self.config.train.seed}"
        if len(text) > LONGEST_NAME:
            digest = hashlib.blake2b(repr(changed).encode(), digest_size=4).hexdigest()
            text = f"{text[: LONGEST_NAME - 9]}-{digest}"
        return f"{text}_{seed}" if text else seed

    def folder(self, runs: Path) -> Path:
        """Return the folder of the run: ``<runs>/<base config>/<name>``.

        The name of a base config outside a folder ``base`` includes its folder's name, as in
        ``voc_faster_rcnn_r50`` and ``coco_faster_rcnn_r50``.
        """
        room = self.base.parent.name
        return runs / (self.base.stem if room == "base" else f"{room}_{self.base.stem}") / self.name

    def computes_like(self, other: Run) -> bool:
        """Return whether two runs compute the same results, on any machine."""
        return self.total_batch == other.total_batch and (
            _decisive(self.config) == _decisive(other.config)
        )


def as_words(overrides: Mapping[str, Any]) -> list[str]:
    """Format values by dotted key as command-line arguments, parsed as YAML: ``a='b #1'``."""
    return [f"{key}={_as_yaml(value)}" for key, value in overrides.items()]


def stage(run: Run, folder: Path, split: str) -> Stage:
    """Return the progress of a run.

    Raises:
        InputError: the folder holds a run with another config.
    """
    if (folder / "config.yaml").is_file():
        check_config(run, folder)
    record = read_record(folder)
    if record.get("trained"):
        return "scored" if scores_file(folder, split).is_file() else "trained"
    if record.get("error"):
        return "failed"
    return "cut off" if has_checkpoint(folder) else "not run"


def has_checkpoint(folder: Path) -> bool:
    """Return whether training can be resumed there."""
    return any((folder / name).is_file() for name in RESUMED)


def check_config(run: Run, folder: Path) -> None:
    """Raise InputError if the folder's run has another config than the study's current one."""
    path = folder / "config.yaml"
    before, now = _decisive(parse_config(read_yaml(path), str(path))), _decisive(run.config)
    changed = [f"{key} {before.get(key)!r}" for key in sorted(now) if before.get(key) != now[key]]
    batch = read_record(folder).get("total_batch", run.total_batch)
    changed += [f"a total batch of {batch}"] if batch != run.total_batch else []
    if changed:
        raise InputError(
            f"{folder}: was run with another config ({', '.join(changed[:4])}); move the folder "
            "away to rerun it"
        )


def scores_file(folder: Path, split: str) -> Path:
    """Return the file of the last checkpoint's scores on a split."""
    return folder / f"scores-{split.replace('/', '-')}.json"


def read_scores(folder: Path, split: str) -> dict[str, Any]:
    """Read the scores of a scored run, in the format of ``metrics.json``.

    Raises:
        InputError: the file is damaged.
    """
    return _read_json(scores_file(folder, split), "delete it, and `run` scores it again")


def read_record(folder: Path) -> dict[str, Any]:
    """Read a study's record of a run: ``trained``, ``seconds``, ``machine``, ``error``, …

    Raises:
        InputError: the file is damaged.
    """
    path = folder / RECORD
    cure = "restore it, or delete its folder to rerun the training"
    record = _read_json(path, cure) if path.is_file() else {}
    for key in ("seconds", "cpu_seconds", "iterations"):
        value = record.get(key)
        if not (value is None or type(value) in (int, float)):
            raise InputError(f"{path}: {key} is {shown(value)}, not a number; correct or delete it")
    code = record.get("code", [])
    if not (isinstance(code, list) and all(isinstance(version, str) for version in code)):
        raise InputError(f"{path}: code is {shown(code)}, not a list of versions; delete it")
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Replace a study's record of a run."""
    write_atomically(folder / RECORD, dump_record(record).encode())


def dump_record(record: Mapping[str, Any]) -> str:
    """Format a study's record of a run as JSON."""
    return json.dumps({k: v for k, v in record.items() if v is not None}, indent=2) + "\n"


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Lock a run's folder against other shells; yield None if another one holds it.

    The yielded file descriptor is passed to the training process too: the lock then lasts until
    both have ended, so that no second training starts beside an orphan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Return whether a run is in progress."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)  # also where only others may write
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(
            descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # does not block a holder of the lock
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read_json(path: Path, cure: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError:
        raise InputError(f"{path}: is not JSON; {cure}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: is not a mapping; {cure}")
    return values


def differing_keys(one: Run, other: Run) -> list[str]:
    """Return the dotted result-affecting keys in which two runs differ."""
    values, others = _decisive(one.config), _decisive(other.config)
    keys = sorted(values.keys() | others.keys())
    return [key for key in keys if values.get(key) != others.get(key)]


def _decisive(config: Config) -> dict[str, Any]:
    """Return the result-affecting keys of a config, dotted."""
    ignored = PLACE_KEYS if config.train.patience else PLACE_KEYS | EVALUATION_KEYS
    return {key: value for key, value in config.flat().items() if key not in ignored}


def _short(key: str) -> str:
    """``loss.weighting.variant`` -> ``variant``, ``loss.box.type`` -> ``box``."""
    names = key.split(".")
    return names[-2] if names[-1] == "type" and len(names) > 1 else names[-1]


def _as_yaml(value: Any) -> str:
    plain = str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).strip()
    return text.removesuffix("...").strip()
