"""A study: a grid of training runs, defined in YAML together with the paper's numbers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from data.errors import InputError, shown
from engine.strict_yaml import read_yaml
from scripts.studies.run import Run

STUDIES = Path(__file__).resolve().parents[2] / "configs/studies"

Labels = Mapping[str, str]


class Axis(BaseModel, extra="forbid", frozen=True):
    """One thing that a study varies."""

    name: str = Field(description="heading of the axis in the table")
    key: str | None = Field(
        default=None, description="config key that the values set; null: the values name their keys"
    )
    values: dict[str, Any] = Field(
        min_length=1,
        description="value for the key, or mapping of config keys, by label; in a list of plain "
        "values each is its own label",
    )

    @model_validator(mode="before")
    @classmethod
    def _list_labels_itself(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and isinstance(raw.get("values"), list):
            return {**raw, "values": {str(value): value for value in raw["values"]}}
        return raw

    @model_validator(mode="after")
    def _values_name_keys(self) -> Axis:
        if self.key is None:
            for label, value in self.values.items():
                if not isinstance(value, Mapping):
                    raise ValueError(f"{label}: without key, a mapping of config keys is required")
        return self

    def overrides(self, label: str) -> dict[str, Any]:
        """Return the values that a label stands for, by dotted config key."""
        value = self.values[label]
        if not isinstance(value, Mapping):
            return {str(self.key): value}
        prefix = f"{self.key}." if self.key else ""
        return {prefix + key: below for key, below in value.items()}

    def varied_keys(self) -> set[str]:
        """Return the dotted config keys that the labels set."""
        return {key for label in self.values for key in self.overrides(label)}


def flatten_cells(
    cells: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[float]]]:
    """Yield each path of nested labels with its numbers."""
    for label, below in cells.items():
        if isinstance(below, Mapping):
            yield from flatten_cells(below, (*path, label))
        else:
            yield (*path, label), below if isinstance(below, list) else [below]


class Score(BaseModel, extra="forbid", frozen=True):
    """How a run's last checkpoint is scored."""

    split: str = Field(default="val", description="train, val, or the name of a split of the data")
    metrics: dict[str, str] = Field(
        min_length=1, description="dotted path in metrics.json by table heading"
    )
    digits: int = Field(
        default=4, ge=3, le=6, description="decimals of scores; changes show two fewer"
    )


class Paper(BaseModel, extra="forbid", frozen=True):
    """The paper's own numbers."""

    printed: Literal["values", "changes"] = Field(
        default="values",
        description="changes: all rows except the baseline are printed as changes in points",
    )
    like: tuple[str, ...] = Field(
        default=(), description="labels of the paper's table that this study's axes lack"
    )
    cells: dict[str, Any] = Field(
        default_factory=dict,
        description="number, or one per metric, by labels nested in any order; null if there is "
        "none",
    )

    @model_validator(mode="after")
    def _cells_are_numbers(self) -> Paper:
        for path, values in flatten_cells(self.cells):
            if not all(value is None or type(value) in (int, float) for value in values):
                raise ValueError(f"cells: {', '.join(path)}: {shown(values)} is not a number")
        return self


class Figure(BaseModel, extra="forbid", frozen=True):
    """A figure of runs of this study: one of the paper's, or (weights) scores over weights."""

    kind: Literal["losses", "shift", "windows", "detections", "weights"] = Field(
        description="kind of figure"
    )
    cells: tuple[dict[str, str], ...] = Field(
        default=(),
        description="labels of each run shown; by default the first of each axis (weights: all)",
    )
    caption: str = Field(default="", description="heading of the figure")


class Study(BaseModel, extra="forbid", frozen=True):
    """The content of a study's file, with a preset applied."""

    title: str = Field(description="table heading: what is compared, on which data")
    base: str = Field(description="config of every run, relative to the study's file")
    axes: tuple[Axis, ...] = Field(
        min_length=1, description="varied settings, in the table's order"
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="config overrides of every run, by dotted key"
    )
    skip: tuple[dict[str, str], ...] = Field(
        default=(), description="labels of cells to leave out of the table"
    )
    columns: str | None = Field(
        default=None, description="axis whose values form columns; null: only the metrics do"
    )
    against: dict[str, str] = Field(description="labels of the baseline, such as {weights: fixed}")
    seeds: tuple[int, ...] = Field(
        default=(0,), min_length=1, description="seeds; one run per cell and seed"
    )
    processes: int = Field(default=1, ge=1, description="processes that share the total batch")
    score: Score = Field(description="how runs are scored")
    paper: Paper = Field(default=Paper(), description="the paper's numbers")
    figures: dict[str, Figure] = Field(default_factory=dict, description="figures by name")
    note: str = Field(default="", description="line under the table")
    name: str = Field(description="name of the file and of the preset")
    folder: Path = Field(description="folder of the file, which base is relative to")

    @model_validator(mode="after")
    def _labels_exist(self) -> Study:
        values = {axis.name: axis.values for axis in self.axes}
        if len(values) < len(self.axes):
            raise ValueError(f"axes: two have the same name, among {', '.join(values)}")
        named = [self.against, *self.skip, *(c for f in self.figures.values() for c in f.cells)]
        if self.columns is not None and self.columns not in values:
            raise ValueError(
                f"columns: {self.columns!r} is not an axis; choose {', '.join(values)}"
            )
        for labels in named:
            for axis, label in labels.items():
                if label not in values.get(axis, ()):
                    choices = ", ".join(values.get(axis, values))
                    raise ValueError(f"{axis}: {label}: unknown label; choose {choices}")
        return self

    @property
    def base_path(self) -> Path:
        """The config file of every run."""
        return (self.folder / self.base).resolve()

    def cells(self) -> Iterator[Labels]:
        """The labels of each cell of the table, the last axis fastest."""
        names = [axis.name for axis in self.axes]
        for combination in itertools.product(*(axis.values for axis in self.axes)):
            labels = dict(zip(names, combination, strict=True))
            if not any(part.items() <= labels.items() for part in self.skip):
                yield labels

    def run(self, labels: Labels, seed: int, extra: Mapping[str, Any]) -> Run:
        """Return the run of a cell and seed; ``extra`` are the user's overrides."""
        overrides = dict(self.set)
        for axis in self.axes:
            overrides |= axis.overrides(labels[axis.name])
        return Run(self.base_path, {**overrides, **extra, "train.seed": seed}, self.processes)

    def baseline(self, labels: Labels) -> dict[str, str]:
        """Return the labels of a cell's baseline."""
        return {**labels, **self.against}

    def published(self, labels: Labels) -> list[float] | None:
        """Return the paper's number for each metric as printed, or None if it has none."""
        wanted = frozenset(labels.values()) | set(self.paper.like)
        for path, values in flatten_cells(self.paper.cells):
            if frozenset(path) == wanted:
                return values
        return None


def narrowed(study: Study, words: Sequence[str]) -> Study:
    """Restrict a study to labels and seeds such as ``["weights=fixed,alwa_1", "seed=0"]``.

    Several words of one axis add up. Figures keep only the remaining cells.

    Raises:
        InputError: a word names an unknown axis or label.
    """
    axes = {axis.name: axis for axis in study.axes}
    known = {name: [*axis.values] for name, axis in axes.items()}
    known["seed"] = [str(seed) for seed in study.seeds]
    chosen: dict[str, set[str]] = defaultdict(set)
    for word in words:
        name, _, text = word.partition("=")
        if name not in known:
            raise InputError(
                f"--only {word}: {study.name} has no such axis; choose {', '.join(known)}"
            )
        chosen[name].update(_labels(text, known[name], word))
    seeds = tuple(s for s in study.seeds if "seed" not in chosen or str(s) in chosen["seed"])
    for name in chosen.keys() - {"seed"}:
        kept = {label: value for label, value in axes[name].values.items() if label in chosen[name]}
        axes[name] = axes[name].model_copy(update={"values": kept})
    figures = {
        number: figure.model_copy(update={"cells": tuple(_still_there(figure.cells, axes))})
        for number, figure in study.figures.items()
    }
    changed = {"axes": tuple(axes.values()), "seeds": seeds, "figures": figures}
    return study.model_copy(update=changed)


def _labels(text: str, known: Sequence[str], word: str) -> Iterator[str]:
    """Split comma-separated labels, which may contain commas; the longest match is taken."""
    parts = text.split(",")
    while parts:
        lengths = range(len(parts), 0, -1)
        fitting = next((n for n in lengths if ",".join(parts[:n]) in known), None)
        if fitting is None:
            raise InputError(
                f"--only {word}: unknown label {parts[0]!r}; choose {', '.join(known)}"
            )
        yield ",".join(parts[:fitting])
        parts = parts[fitting:]


def _still_there(cells: Sequence[Labels], axes: Mapping[str, Axis]) -> Iterator[Labels]:
    for labels in cells:
        if all(label in axes[axis].values for axis, label in labels.items()):
            yield labels


def with_preset(values: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's keys with those of a preset replacing them.

    Three are special: ``paper`` is merged, ``without`` names axes to leave out, and ``narrow``
    names for some axes the labels that are kept.

    Raises:
        InputError: ``without`` or ``narrow`` names an unknown axis or label.
        ValidationError: a key has a value of the wrong type.
    """
    special = _Special.model_validate(preset)
    merged = {**values, **preset, "paper": {**(values.get("paper") or {}), **special.paper}}
    for key in ("without", "narrow"):
        merged.pop(key, None)
    if not special.without and not special.narrow:
        return merged
    axes = {axis.name: axis for axis in map(Axis.model_validate, merged.get("axes") or ())}
    for name in (*special.without, *special.narrow):
        if name not in axes:
            raise InputError(f"{name}: unknown axis in narrow or without; choose {_names(axes)}")
    for name, labels in special.narrow.items():
        axes[name] = _narrowed(axes[name], labels)
    merged["axes"] = [axis for name, axis in axes.items() if name not in special.without]
    return merged


class _Special(BaseModel, extra="ignore", frozen=True):
    """The keys of a preset that do not replace those of the study."""

    without: tuple[str, ...] = ()
    narrow: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    paper: dict[str, Any] = Field(default_factory=dict)


def _narrowed(axis: Axis, labels: Sequence[str]) -> Axis:
    for label in labels:
        if label not in axis.values:
            raise InputError(f"{axis.name}: {label}: unknown label; choose {_names(axis.values)}")
    return axis.model_copy(update={"values": {label: axis.values[label] for label in labels}})


def _names(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def load_study(name: str, preset: str | None = None) -> Study:
    """Read a study by its name in ``configs/studies`` or by the path of its file.

    Raises:
        InputError: the study or preset is unknown, or a key or value is wrong.
    """
    path = STUDIES / f"{name}.yaml"
    if name.endswith(".yaml"):
        path = Path(name)
    elif not path.is_file():
        known = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml")))
        raise InputError(f"{name}: study not found; choose {known}, or give a .yaml file")
    values = read_yaml(path)
    presets = values.pop("presets", None) or {}
    if not isinstance(presets, Mapping):
        raise InputError(f"{path}: presets: {shown(presets)} is not a mapping of presets by name")
    whole = dict(values)
    if preset is not None:
        if preset not in presets:
            known = ", ".join(presets) or "none"
            raise InputError(f"{path}: has no preset {preset!r}; choose from: {known}")
        if not isinstance(presets[preset], Mapping):
            raise InputError(f"{path}: presets.{preset}: must be a mapping of study keys")
        try:
            values = with_preset(values, presets[preset])
        except InputError as error:
            raise InputError(f"{path}: presets.{preset}: {error}") from None
        except ValidationError as error:
            raise InputError(f"{path}: presets.{preset}: {_first_problem(error)}") from None
    values |= {"name": "-".join(filter(None, (path.stem, preset))), "folder": path.parent}
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error)}") from None
    _check_paper(path, study, whole)
    return study


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    return f"{key}: {problem['msg']}" if key else problem["msg"]


def _check_paper(path: Path, study: Study, whole: Mapping[str, Any]) -> None:
    """Raise InputError for a number of the paper that no cell shows, as for a misspelt label.

    ``whole`` is the file without a preset, which may leave out axes and labels.
    """
    of_file = [axis for axis in whole.get("axes") or () if isinstance(axis, Mapping)]
    named = [*(axis.values for axis in study.axes), *(axis.get("values") or () for axis in of_file)]
    known = {str(label) for labels in named for label in labels} | set(study.paper.like)
    for labels, values in flatten_cells(study.paper.cells):
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise InputError(
                f"{path}: paper.cells: {shown(unknown[0])} is neither a label of an axis nor in "
                "paper.like; correct it"
            )
        if len(values) > len(study.score.metrics):
            raise InputError(
                f"{path}: paper.cells: {', '.join(labels)} has {len(values)} numbers for "
                f"{len(study.score.metrics)} metrics; remove the others, or add their metrics"
            )
