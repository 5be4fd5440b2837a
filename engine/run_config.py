"""Config models of the engine: training and evaluation."""

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
    """Config of the training run."""

    name: str | None = Field(
        default=None, description="name of the run; null: the name of the config file"
    )
    output: Annotated[str, AfterValidator(os.path.expanduser)] = Field(
        default="runs", description="folder that holds the folders of all runs"
    )
    epochs: PositiveInt = Field(default=12, description="passes over the (repeated) training split")
    lr: PositiveFloat = Field(
        default=0.01, description="learning rate for a total batch of 8 images"
    )
    scale_lr: bool = Field(
        default=True,
        description="with SGD, scale lr linearly with the total batch (ranks and accumulation)",
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="optimizer: SGD with momentum, or AdamW"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(
        default=1e-4, ge=0, description="weight decay of every trained parameter"
    )
    schedule: Literal["milestones", "cosine"] = Field(
        default="milestones",
        description="milestones: multiply lr by gamma at each; cosine: half a cosine down to 0",
    )
    milestones: tuple[PositiveInt, ...] = Field(
        default=(8, 11), description="epochs after which lr is multiplied by gamma"
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="factor of lr at each milestone")
    warmup_iterations: int = Field(default=500, ge=0, description="iterations of linear warm-up")
    warmup_factor: float = Field(
        default=0.001,
        gt=0,
        le=1,
        description="fraction of lr at the first iteration of the warm-up",
    )
    clip_gradients: PositiveFloat | None = Field(
        default=None, description="maximum norm of all gradients together; null: no clipping"
    )
    accumulate: PositiveInt = Field(
        default=1, description="batches whose gradients are accumulated in one iteration"
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is evaluated and saved in "
        "their place, for example 0.999; null: no average",
    )
    freeze: dict[str, tuple[int, int]] = Field(
        default={},
        description="modules frozen for some epochs: the first of these, counted from 0, and the "
        "one after the last, as in {backbone.body: [0, 2]}",
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="epochs without a better score after which training ends; null: never",
    )
    amp: Amp = Field(
        default="none",
        description="automatic mixed precision: none (float32), bf16, fp16, or auto (bf16 if the "
        "device supports it, else none)",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="seed of every random stream except those of loss.weighting.rlw.seed and "
        "data.shapes.seed",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device to train on; auto: CUDA if available"
    )
    best: Literal["voc_mAP", "coco_AP", "coco_segm_AP"] = Field(
        default="voc_mAP",
        description="validation score that selects the epoch of best.pt: VOC mAP, COCO box AP or "
        "COCO mask AP",
    )
    log_every: PositiveInt = Field(
        default=20,
        description="iterations between log lines, whose losses are of one iteration, not means",
    )
    checkpoint_every: int = Field(
        default=0,
        ge=0,
        description="iterations between checkpoints within an epoch; 0: only at epoch ends",
    )
    pictures: int = Field(default=4, ge=0, description="validation images drawn in TensorBoard")
    trackers: tuple[Literal["mlflow", "wandb"], ...] = Field(
        default=(),
        description="trackers in addition to TensorBoard: mlflow, wandb (separate packages)",
    )

    @field_validator("milestones")
    @classmethod
    def _milestones_ascend(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"must be ascending, got {list(value)}")
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
            raise ValueError(f"{list(value)} has a duplicate; remove it")
        return value

    @field_validator("name", "output")
    @classmethod
    def _paths_are_possible(cls, value: str | None) -> str | None:
        if value is not None and "\0" in value:
            raise ValueError("the path contains a NUL character")
        return value


class EvaluateConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Config of the evaluation."""

    iou: float = Field(
        default=0.5, gt=0, le=1, description="minimum IoU of a correct detection in VOC mAP"
    )
    every: PositiveInt = Field(
        default=1, description="epochs between evaluations; the last epoch is always evaluated"
    )
    flip: bool = Field(
        default=False,
        description="detect in the mirrored image too and merge: slower, often better",
    )
    engine: Engine = Field(
        default="pycocotools",
        description="program that computes the COCO scores; all give the same numbers, the last "
        "two are faster (separate packages)",
    )
