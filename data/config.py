"""What a config file says about data: the format, the splits, and how images become batches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

ShapeName = Literal["circle", "square", "triangle", "star", "ring", "cross"]


# By format: root, train and val where the config file does not name them.
_PLACES = {
    "voc": ("datasets/VOCdevkit/VOC2007", "trainval", "test"),
    "coco": ("datasets/coco", "train2017", "val2017"),
    "shapes": ("datasets/shapes", "train", "val"),
}


def _by_format(place: int) -> str:
    """What each format takes where the key is left out, as text."""
    return ", ".join(f"{name} {places[place]}" for name, places in _PLACES.items())


class VocConfig(BaseModel, extra="forbid", frozen=True):
    """What only VOC annotations need."""

    coordinates: Literal["one_based", "zero_based"] = Field(
        default="one_based",
        description="one_based: the devkit's inclusive pixels from 1; zero_based: plain corners",
    )
    use_difficult: bool = Field(
        default=False,
        description="train on objects marked difficult (scores ignore them either way)",
    )


class ShapesConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The drawn dataset: textured pictures of overlapping shapes at several scales."""

    seed: int = Field(default=0, ge=0, description="all pictures follow from it")
    train_images: int = Field(
        default=480, ge=1, description="number of pictures in the train split"
    )
    val_images: int = Field(default=120, ge=1, description="number of pictures in the val split")
    image_size: tuple[int, int] = Field(
        default=(128, 160), description="height and width in pixels"
    )
    shapes: tuple[ShapeName, ...] = Field(
        default=("circle", "square", "triangle"),
        min_length=1,
        description="the kinds of shapes: classes",
    )
    objects: tuple[int, int] = Field(
        default=(1, 6), description="fewest and most shapes in a picture"
    )
    scale: tuple[float, float] = Field(
        default=(0.12, 0.5),
        description="smallest and largest size of a shape, by the picture's short side",
    )

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> ShapesConfig:
        if min(self.image_size) < 32:
            raise ValueError(f"image_size: {list(self.image_size)} is too small; at least 32 px")
        if len(set(self.shapes)) < len(self.shapes):
            raise ValueError(f"shapes: {list(self.shapes)} names a shape twice")
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"objects: {list(self.objects)} must be [fewest, most]")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: {list(self.scale)} must be [smallest, largest] within 0..1")
        return self


class MultiScaleConfig(BaseModel, extra="forbid", frozen=True):
    """Training images at several sizes; the scores' images stay at ``image_size``."""

    short_sides: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        description="short sides to draw from, pixels, one for each batch in place of "
        "image_size[0]; none: a single scale",
    )
    mode: Literal["choice", "range"] = Field(
        default="choice",
        description="draw one of short_sides, or any length from the smallest to the largest",
    )

    @model_validator(mode="after")
    def _a_range_has_two_ends(self) -> MultiScaleConfig:
        if self.mode == "range" and len(self.short_sides) < 2:
            raise ValueError("short_sides: a range needs its smallest and its largest short side")
        return self


class SamplingConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How often an epoch shows each image."""

    type: Literal["uniform", "repeat_factor", "class_balanced"] = Field(
        default="uniform",
        description="every image once; images of rare classes several times (LVIS); every class "
        "equally often, images without objects never",
    )
    threshold: float = Field(
        default=0.001,
        gt=0,
        le=1,
        description="repeat_factor: classes in a smaller share of the images than this are rare",
    )


class DataConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The ``data`` block of a config file."""

    format: Literal["voc", "coco", "shapes"] = Field(
        default="shapes", description="layout of the dataset; shapes is drawn on first use"
    )
    root: Path = Field(
        default=Path("datasets/shapes"),
        description=f"folder of the dataset; default by format: {_by_format(0)}",
    )
    train: str | tuple[str, ...] = Field(
        default="train",
        description=f"split or list of splits to train on; default by format: {_by_format(1)}",
    )
    val: str | tuple[str, ...] = Field(
        default="val",
        description=f"split or list of splits to evaluate on; default by format: {_by_format(2)}",
    )
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="class names in the order of their labels; null: VOC's 20 if every name of the "
        "train split is one of them, else its sorted names; COCO: the categories of its file",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="use only the first images of train and of val, each of which may be a list of "
        "splits: to try out or to overfit on purpose",
    )
    image_size: tuple[int, int] = Field(
        default=(600, 1000),
        description="short side and longest allowed long side after resizing, pixels",
    )
    multi_scale: MultiScaleConfig = Field(
        default=MultiScaleConfig(), description="training images at several sizes"
    )
    repeat: int = Field(default=1, ge=1, description="times that an epoch sees each training image")
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), description="how often an epoch shows each image"
    )
    batch_size: int = Field(default=2, ge=1, description="images per process and step")
    workers: int = Field(
        default=2,
        ge=0,
        description="loader processes of each training process, and as many again to evaluate; 0: "
        "it loads by itself",
    )
    prefetch: int = Field(default=2, ge=1, description="batches that each worker prepares ahead")
    cache: Literal["none", "memory"] = Field(
        default="none",
        description="memory: decode each image once and keep its pixels, 3 bytes each, shared by "
        "the workers of a process",
    )
    augment: tuple[dict[str, dict[str, Any]], ...] = Field(
        default=({"HorizontalFlip": {"p": 0.5}},),
        description="Albumentations transforms in order, each {Name: {parameter: value}}",
    )
    drop_empty: bool = Field(
        default=False, description="leave images without objects out of training"
    )
    min_image_side: int = Field(
        default=0,
        ge=0,
        description="leave images with a shorter side than this out of training, pixels",
    )
    follow_links: bool = Field(
        default=False,
        description="accept images, annotations and lists of splits that are links to files "
        "outside the root",
    )
    exif: Literal["apply", "ignore"] = Field(
        default="apply",
        description="turn pictures as their EXIF orientation says, except where the annotated size "
        "is that of the stored pixels; ignore: annotations are of the stored pixels",
    )
    on_damaged: Literal["raise", "skip"] = Field(
        default="raise",
        description="an undecodable image stops the run; or it is replaced in training, and left "
        "out in scoring, where its objects count as missed",
    )
    max_damaged: int = Field(
        default=100,
        ge=0,
        description="with on_damaged skip: images that each process may replace, or leave out in "
        "scoring, before it stops",
    )
    max_image_pixels: int = Field(
        default=200_000_000,
        ge=1,
        description="images with more pixels than this are refused unread",
    )
    voc: VocConfig = Field(default=VocConfig(), description="options of format voc")
    shapes: ShapesConfig = Field(default=ShapesConfig(), description="options of format shapes")

    @model_validator(mode="before")
    @classmethod
    def _fill_places_by_format(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        places = _PLACES.get(str(values.get("format", "shapes")), _PLACES["shapes"])
        return {**dict(zip(("root", "train", "val"), places, strict=True)), **values}

    @field_validator("augment", mode="before")
    @classmethod
    def _name_alone_means_no_parameters(cls, value: object) -> object:
        """``[Name, {Name: null}]`` -> ``[{Name: {}}, {Name: {}}]``; null -> no transforms."""
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            return value
        return [_parameters_filled(transform) for transform in value]

    @field_validator("augment")
    @classmethod
    def _one_transform_each(
        cls, value: tuple[dict[str, dict[str, Any]], ...]
    ) -> tuple[dict[str, dict[str, Any]], ...]:
        for transform in value:
            if len(transform) != 1:
                raise ValueError(
                    f"{transform!r} holds {len(transform)} names; write each transform as an item "
                    "of its own: - Name: {parameter: value}"
                )
        return value

    @field_validator("root")
    @classmethod
    def _root_is_a_path(cls, value: Path) -> Path:
        if "\0" in str(value):
            raise ValueError("the path holds a NUL character")
        return Path(os.path.expanduser(value))  # in root=~/x the shell leaves the ~ as it is

    @field_validator("train", "val")
    @classmethod
    def _splits_have_names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        splits = (value,) if isinstance(value, str) else value
        if not splits or not all(split.strip() for split in splits):
            raise ValueError("name a split, or a list of at least one split")
        if len(set(splits)) < len(splits):
            raise ValueError(f"{list(splits)} names a split twice; use repeat instead")
        return value

    @field_validator("classes")
    @classmethod
    def _classes_are_distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        if not value or not all(name.strip() for name in value):
            raise ValueError("list at least one class name and no empty one, or write null")
        doubled = sorted({name for name in value if value.count(name) > 1})
        if doubled:
            raise ValueError(f"{', '.join(doubled)} is listed twice; list each class once")
        return value

    @field_validator("image_size")
    @classmethod
    def _short_side_first(cls, value: tuple[int, int]) -> tuple[int, int]:
        short, long = value
        if not 1 <= short <= long:
            raise ValueError(f"{[short, long]} must be [short side, longest long side]")
        return value

    @model_validator(mode="after")
    def _scales_fit_the_long_side(self) -> DataConfig:
        if max(self.multi_scale.short_sides, default=0) > self.image_size[1]:
            raise ValueError(
                f"multi_scale.short_sides: {list(self.multi_scale.short_sides)} go beyond the "
                f"longest long side, image_size[1] = {self.image_size[1]}"
            )
        return self

    def split(self, name: str) -> str | tuple[str, ...]:
        """The split or splits of a role, ``train`` or ``val``; any other name is a split's own."""
        return {"train": self.train, "val": self.val}.get(name, name)


def _parameters_filled(transform: object) -> object:
    if isinstance(transform, str):
        return {transform: {}}
    if isinstance(transform, Mapping):
        return {name: {} if given is None else given for name, given in transform.items()}
    return transform
