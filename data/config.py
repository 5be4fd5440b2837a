"""The ``data`` block of a config file: the format, the splits, and how images become batches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

ShapeName = Literal["circle", "square", "triangle", "star", "ring", "cross"]


# The defaults of root, train and val for each format.
_DEFAULTS = {
    "voc": ("datasets/VOCdevkit/VOC2007", "trainval", "test"),
    "coco": ("datasets/coco", "train2017", "val2017"),
    "shapes": ("datasets/shapes", "train", "val"),
}


def _list_defaults(key: int) -> str:
    """The default of each format for root (0), train (1) or val (2), as text."""
    return ", ".join(f"{name} {defaults[key]}" for name, defaults in _DEFAULTS.items())


class VocConfig(BaseModel, extra="forbid", frozen=True):
    """Options of VOC annotations."""

    coordinates: Literal["one_based", "zero_based"] = Field(
        default="one_based",
        description="one_based: inclusive pixel indices from 1, as in the VOC devkit; zero_based: "
        "continuous corners, used as they are",
    )
    use_difficult: bool = Field(
        default=False,
        description="train on objects marked difficult (evaluation ignores them either way)",
    )


class ShapesConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The synthetic dataset: textured images of overlapping shapes at several scales."""

    seed: int = Field(default=0, ge=0, description="seed of all images")
    train_images: int = Field(default=480, ge=1, description="number of images in the train split")
    val_images: int = Field(default=120, ge=1, description="number of images in the val split")
    image_size: tuple[int, int] = Field(
        default=(128, 160), description="height and width in pixels"
    )
    shapes: tuple[ShapeName, ...] = Field(
        default=("circle", "square", "triangle"),
        min_length=1,
        description="kinds of shapes to draw; each is a class",
    )
    objects: tuple[int, int] = Field(
        default=(1, 6), description="minimum and maximum number of shapes in an image"
    )
    scale: tuple[float, float] = Field(
        default=(0.12, 0.5),
        description="minimum and maximum size of a shape, relative to the image's short side",
    )

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> ShapesConfig:
        if min(self.image_size) < 32:
            raise ValueError(f"image_size: {list(self.image_size)} must be at least 32 px per side")
        if len(set(self.shapes)) < len(self.shapes):
            raise ValueError(f"shapes: {list(self.shapes)} lists a shape twice; list each once")
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"objects: {list(self.objects)} must be [minimum, maximum]")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: {list(self.scale)} must be [minimum, maximum] within 0..1")
        return self


class MultiScaleConfig(BaseModel, extra="forbid", frozen=True):
    """Multi-scale training; evaluation always uses ``image_size``."""

    short_sides: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        description="short sides in pixels, one drawn for each batch in place of image_size[0]; "
        "empty: a single scale",
    )
    mode: Literal["choice", "range"] = Field(
        default="choice",
        description="choice: draw one of short_sides; range: draw any integer from the smallest to "
        "the largest",
    )

    @model_validator(mode="after")
    def _a_range_has_two_ends(self) -> MultiScaleConfig:
        if self.mode == "range" and len(self.short_sides) < 2:
            raise ValueError("short_sides: mode range needs at least a smallest and a largest side")
        return self


class SamplingConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How often each image is drawn per epoch."""

    type: Literal["uniform", "repeat_factor", "class_balanced"] = Field(
        default="uniform",
        description="uniform: every image once; repeat_factor: images of rare classes several "
        "times (LVIS); class_balanced: every class equally often, images without objects never",
    )
    threshold: float = Field(
        default=0.001,
        gt=0,
        le=1,
        description="repeat_factor: classes in a smaller fraction of the images than this are rare",
    )


class DataConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The ``data`` block of a config file."""

    format: Literal["voc", "coco", "shapes"] = Field(
        default="shapes",
        description="dataset format: voc, coco, or shapes (synthetic, generated on first use)",
    )
    root: Path = Field(
        default=Path("datasets/shapes"),
        description=f"dataset folder; default by format: {_list_defaults(0)}",
    )
    train: str | tuple[str, ...] = Field(
        default="train",
        description=f"split or list of splits to train on; default by format: {_list_defaults(1)}",
    )
    val: str | tuple[str, ...] = Field(
        default="val",
        description="split or list of splits to evaluate on; default by format: "
        f"{_list_defaults(2)}",
    )
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="class names in label order; null: VOC's 20 if they cover the train split, "
        "else its sorted names; for COCO the file's categories",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="use only the first N images of train and of val (several splits count as "
        "one), for a trial run or to overfit on purpose",
    )
    image_size: tuple[int, int] = Field(
        default=(600, 1000),
        description="short side and maximum long side after resizing, in pixels",
    )
    multi_scale: MultiScaleConfig = Field(
        default=MultiScaleConfig(), description="multi-scale training"
    )
    repeat: int = Field(
        default=1, ge=1, description="number of times each training image is drawn per epoch"
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), description="how often each image is drawn per epoch"
    )
    batch_size: int = Field(default=2, ge=1, description="images per process and step")
    workers: int = Field(
        default=2,
        ge=0,
        description="loader processes per training process, and as many again for evaluation; "
        "0: load in the training process",
    )
    prefetch: int = Field(
        default=2, ge=1, description="batches that each worker prepares in advance"
    )
    cache: Literal["none", "memory"] = Field(
        default="none",
        description="none: decode images every time; memory: decode each once and keep its pixels "
        "(3 bytes each), shared by the workers of a process",
    )
    augment: tuple[dict[str, dict[str, Any]], ...] = Field(
        default=({"HorizontalFlip": {"p": 0.5}},),
        description="Albumentations transforms in order, each {Name: {parameter: value}}",
    )
    drop_empty: bool = Field(
        default=False, description="exclude images without objects from training"
    )
    min_image_side: int = Field(
        default=0,
        ge=0,
        description="exclude images with a side shorter than this from training, in pixels",
    )
    follow_links: bool = Field(
        default=False,
        description="accept images, annotations and split lists that are links to files outside "
        "the root",
    )
    exif: Literal["apply", "ignore"] = Field(
        default="apply",
        description="apply: rotate images by their EXIF orientation, unless the annotated size is "
        "that of the stored pixels; ignore: annotations refer to the stored pixels",
    )
    on_damaged: Literal["raise", "skip"] = Field(
        default="raise",
        description="raise: an undecodable image stops the run; skip: it is replaced in training "
        "and skipped in evaluation, where its objects count as missed",
    )
    max_damaged: int = Field(
        default=100,
        ge=0,
        description="on_damaged skip: images that each process may replace or skip before it stops",
    )
    max_image_pixels: int = Field(
        default=200_000_000,
        ge=1,
        description="reject images with more pixels than this before decoding them",
    )
    voc: VocConfig = Field(default=VocConfig(), description="options of format voc")
    shapes: ShapesConfig = Field(default=ShapesConfig(), description="options of format shapes")

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults_by_format(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        defaults = _DEFAULTS.get(str(values.get("format", "shapes")), _DEFAULTS["shapes"])
        return {**dict(zip(("root", "train", "val"), defaults, strict=True)), **values}

    @field_validator("augment", mode="before")
    @classmethod
    def _fill_missing_parameters(cls, value: object) -> object:
        """``[Name, {Name: null}]`` -> ``[{Name: {}}, {Name: {}}]``; null -> no transforms."""
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            return value
        return [_fill_parameters(transform) for transform in value]

    @field_validator("augment")
    @classmethod
    def _one_transform_each(
        cls, value: tuple[dict[str, dict[str, Any]], ...]
    ) -> tuple[dict[str, dict[str, Any]], ...]:
        for transform in value:
            if len(transform) != 1:
                raise ValueError(
                    f"{transform!r} has {len(transform)} names; write each transform as its own "
                    "list item: - Name: {parameter: value}"
                )
        return value

    @field_validator("root")
    @classmethod
    def _root_is_a_path(cls, value: Path) -> Path:
        if "\0" in str(value):
            raise ValueError("the path contains a NUL character")
        return Path(os.path.expanduser(value))  # the shell does not expand the ~ in root=~/x

    @field_validator("train", "val")
    @classmethod
    def _splits_have_names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        splits = (value,) if isinstance(value, str) else value
        if not splits or not all(split.strip() for split in splits):
            raise ValueError("give the name of a split, or a list of at least one")
        if len(set(splits)) < len(splits):
            raise ValueError(f"{list(splits)} lists a split twice; use repeat instead")
        return value

    @field_validator("classes")
    @classmethod
    def _classes_are_distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        if not value or not all(name.strip() for name in value):
            raise ValueError("list at least one class name, none of them empty, or write null")
        doubled = sorted({name for name in value if value.count(name) > 1})
        if doubled:
            raise ValueError(f"{', '.join(doubled)} is listed twice; list each class once")
        return value

    @field_validator("image_size")
    @classmethod
    def _short_side_first(cls, value: tuple[int, int]) -> tuple[int, int]:
        short, long = value
        if not 1 <= short <= long:
            raise ValueError(f"{[short, long]} must be [short side, maximum long side]")
        return value

    @model_validator(mode="after")
    def _scales_fit_the_long_side(self) -> DataConfig:
        if max(self.multi_scale.short_sides, default=0) > self.image_size[1]:
            raise ValueError(
                f"multi_scale.short_sides: {list(self.multi_scale.short_sides)} exceed the "
                f"maximum long side, image_size[1] = {self.image_size[1]}"
            )
        return self

    def split(self, name: str) -> str | tuple[str, ...]:
        """The split or splits that ``train`` or ``val`` stands for; any other name as it is."""
        return {"train": self.train, "val": self.val}.get(name, name)


def _fill_parameters(transform: object) -> object:
    if isinstance(transform, str):
        return {transform: {}}
    if isinstance(transform, Mapping):
        return {name: {} if given is None else given for name, given in transform.items()}
    return transform
