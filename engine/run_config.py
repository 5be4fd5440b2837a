"""The config of the engine: how a run is trained, and how it is scored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from engine.evaluation.coco_engines import Engine
from engine.precision import Amp


class TrainConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How long, how fast and where to train."""

    name: str | None = Field(
        default=None, description="Name of the run; the config file's name if null."
    )
    output: Annotated[str, AfterValidator(os.path.expanduser)] = Field(
        default="runs", description="Folder that holds the folders of all runs."
    )
    epochs: PositiveInt = Field(
        default=12, description="Passes over the (repeated) training split."
    )
    lr: PositiveFloat = Field(
        default=0.01, description="Learning rate for a total batch of 8 images."
    )
    scale_lr: bool = Field(
        default=True,
        description="With SGD, scale lr linearly with the total batch (ranks and accumulation).",
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="Optimizer.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(
        default=1e-4, ge=0, description="Weight decay of every trained parameter."
    )
    schedule: Literal["milestones", "cosine"] = Field(
        default="milestones",
        description="Drop lr at the milestones, or follow half a cosine down to 0.",
    )
    milestones: tuple[PositiveInt, ...] = Field(
        default=(8, 11), description="Epochs after which lr is multiplied by gamma."
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="Factor of lr at each milestone.")
    warmup_iterations: int = Field(default=500, ge=0, description="Iterations of linear warm-up.")
    warmup_factor: float = Field(
        default=0.001, gt=0, le=1, description="Share of lr at the first iteration of the warm-up."
    )
    clip_gradients: PositiveFloat | None = Field(
        default=None, description="Largest norm of all gradients together; null does not clip."
    )
    accumulate: PositiveInt = Field(
        default=1, description="Batches whose gradients make one iteration."
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the weights, evaluated and kept in their place, "
        "for example 0.999; null: none.",
    )
    freeze: dict[str, tuple[int, int]] = Field(
        default={},
        description="Modules that are not trained for some epochs: the first of these, counted "
        "from 0, and the one after the last, as in {backbone.body: [0, 2]}.",
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="Epochs without a better score after which training ends; null: never.",
    )
    amp: Amp = Field(
        default="none",
        description="Automatic mixed precision; auto: bf16 on devices that compute in it.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="Seed of every random stream but those of loss.weighting.rlw.seed and "
        "data.shapes.seed.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train; auto takes CUDA where there is one."
    )
    best: Literal["voc_mAP", "coco_AP", "coco_segm_AP"] = Field(
        default="voc_mAP", description="Validation score that decides which epoch best.pt holds."
    )
    log_every: PositiveInt = Field(
        default=20,
        description="Iterations between log lines. Their losses are of one iteration, not means.",
    )
    checkpoint_every: int = Field(
        default=0,
        ge=0,
        description="Iterations between checkpoints within an epoch; 0: epoch ends only.",
    )
    pictures: int = Field(default=4, ge=0, description="Validation images drawn into TensorBoard.")
    trackers: tuple[Literal["mlflow", "wandb"], ...] = Field(
        default=(),
        description="Trackers beside TensorBoard: mlflow, wandb; each is a package of its own.",
    )

    @field_validator("milestones")
    @classmethod
    def _milestones_ascend(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"must ascend, got {list(value)}")
        return value

    @field_validator("freeze")
    @classmethod
    def _spans_are_ordered(cls, value: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        for name, (start, end) in value.items():
            if not 0 <= start < end:
                raise ValueError(
                    f"{name}: {[start, end]} must be [first epoch, one after the last]"
                )
        return value

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, value: str | None) -> str | None:
        if value is not None and (value in ("", "..") or Path(value).name != value):
            raise ValueError(f"{value!r} must be a plain folder name")
        return value

    @field_validator("trackers")
    @classmethod
    def _trackers_are_different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{list(value)} names one twice; keep it once")
        return value

    @field_validator("name", "output")
    @classmethod
    def _paths_are_possible(cls, value: str | None) -> str | None:
        if value is not None and "\0" in value:
            raise ValueError("the path holds a NUL character")
        return value


class EvaluateConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How detections are scored."""

    iou: float = Field(
        default=0.5, gt=0, le=1, description="IoU from which on a detection is right in VOC mAP."
    )
    every: PositiveInt = Field(
        default=1, description="Epochs between evaluations; the last always is."
    )
    flip: bool = Field(
        default=False,
        description="Detect in each image's mirror image too, and merge: slower, often better.",
    )
    engine: Engine = Field(
        default="pycocotools",
        description="Program that computes COCO's numbers; all give the same, the last two are "
        "faster and packages of their own.",
    )
