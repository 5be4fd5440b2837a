"""Read a YAML file and command-line overrides into one validated, immutable ``Config``."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from data.config import DataConfig
from data.errors import InputError, shown
from detector.config import DetectorConfig
from engine.run_config import EvaluateConfig, TrainConfig
from engine.strict_yaml import parse_yaml, read_yaml
from losses.config import LossConfig

# Plain words for pydantic's messages, by type of problem.
PLAIN_MESSAGES = {
    "model_type": "expected a mapping of keys (or omit it)",
    "dict_type": "expected a mapping of keys",
    "string_type": "expected text (quote numbers, yes, no, on, off)",
    "path_type": "expected a path, such as ../data (quote what YAML reads as another type)",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    "too_short": "expected at least one value",
}
# Not a list, or of the wrong length: "missing" is a list item, as every key has a default.
LIST_PROBLEMS = ("tuple_type", "missing", "too_long")
ONE_OR_MORE = ("str", "tuple[str, ...]")  # the types of a key that holds one or more names
COUNTS = {2: "two", 3: "three", 4: "four"}


class Config(BaseModel, extra="forbid", frozen=True):
    """One experiment: everything that decides what is trained, on what, and how it is scored."""

    detector: DetectorConfig = Field(default=DetectorConfig(), description="model")
    loss: LossConfig = Field(default=LossConfig(), description="losses and their weights")
    data: DataConfig = Field(default=DataConfig(), description="images and annotations")
    train: TrainConfig = Field(default=TrainConfig(), description="training run")
    evaluate: EvaluateConfig = Field(
        default=EvaluateConfig(), description="evaluation and its scores"
    )

    @model_validator(mode="after")
    def _check_best_score(self) -> Config:
        if self.train.best == "coco_segm_AP" and self.detector.type != "mask_rcnn":
            raise ValueError(
                f"train.best: coco_segm_AP scores masks, but {self.detector.type} predicts none; "
                "choose voc_mAP or coco_AP, or detector.type: mask_rcnn"
            )
        return self

    @model_validator(mode="after")
    def _check_gradnorm_gradients(self) -> Config:
        if self.train.freeze and self.loss.weighting.type == "gradnorm":
            raise ValueError(
                "train.freeze: loss.weighting.type gradnorm reads gradients that a frozen part "
                "does not have; leave freeze empty or choose another weighting"
            )
        if self.train.amp == "fp16" and self.loss.weighting.type == "gradnorm":
            raise ValueError(
                "train.amp: loss.weighting.type gradnorm reads unscaled gradients, which underflow "
                "in fp16; choose bf16 or none, or another weighting"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """The run folder."""
        return Path(self.train.output) / (self.train.name or "run")

    def flat(self) -> dict[str, Any]:
        """Every key by its dotted path, with plain values."""
        return flatten(self.model_dump(mode="json"))

    def global_batch(self, world_size: int) -> int:
        """Images in one batch of all processes together."""
        return self.data.batch_size * world_size


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file with its ``base:`` files, apply ``key.path=value`` overrides and validate.

    Raises:
        InputError: the file cannot be read, or a key or value is wrong; every problem is named.
    """
    path = Path(path)
    config = override_config(_read_with_bases(path, ()), overrides, str(path))
    if config.train.name is None:
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"name": path.stem})}
        )
    return config


def override_config(values: Mapping[str, Any], overrides: Sequence[str], source: str) -> Config:
    """Apply command-line overrides to a config saved as plain values and validate the result.

    Raises:
        InputError: a key or value is wrong.
    """
    merged = dict(values)
    for override in overrides:
        merged = _merge(merged, _parse_override(override))
    return parse_config(merged, source, overrides)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split command-line words into file names and ``key.path=value`` overrides.

    The name of an existing file may contain an equals sign.
    """
    overrides = [word for word in words if "=" in word and not os.path.exists(word)]
    return [word for word in words if word not in overrides], overrides


def parse_config(values: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """Validate plain values.

    Args:
        source: where the values come from, for messages.
        overrides: command-line overrides already applied to the values, for messages.

    Raises:
        InputError: one line for each wrong key or value, with its dotted path and the cure.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        lines = [f"{_source_of(each, source, overrides)}: {each}" for each in problems]
        raise InputError("\n".join(dict.fromkeys(lines))) from None
    for key, value, parsed in _leaves(values, config):
        # YAML's true is Python's int 1: `lr: yes` must not train with a learning rate of 1.
        if isinstance(value, bool) and not isinstance(parsed, bool):
            kind = "a whole number" if isinstance(parsed, int) else "a number"
            problem = f"{key}: expected {kind}, got {value}"
            raise InputError(f"{_source_of(problem, source, overrides)}: {problem}")
    return config


def _source_of(problem: str, source: str, overrides: Sequence[str]) -> str:
    """Where the key at the start of a message was set: on the command line or in the source."""
    key = problem.partition(":")[0]
    written = [override.partition("=")[0] for override in overrides]
    if not _keys_at(key.split(".")):  # train.lr.x=1 is wrong of train.lr
        written = [key if name.startswith(f"{key}.") else name for name in written]
    given = any(key == name or key.startswith(f"{name}.") for name in written)
    return "command line" if given else source


def dump_config(values: Mapping[str, Any]) -> str:
    """Format a fully resolved config, given as plain values, as YAML for ``load_config``."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config blocks -> one mapping with dotted keys; a mapping of free names is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and _keys_at(path.split(".")):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def _read_with_bases(path: Path, parents: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in parents:
        chain = " -> ".join(parent.name for parent in (*parents, resolved))
        raise InputError(
            f"{path}: base: the files refer to each other in a circle: {chain}; remove one"
        )
    values = read_yaml(path)
    bases = values.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: base: expected a path or a list of paths, got {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        file = path.parent / base
        if not file.exists():
            raise InputError(
                f"{path}: base: file not found: {file}; give a path relative to the folder of "
                f"{path.name}"
            )
        merged = _merge(merged, _read_with_bases(file, (*parents, resolved)))
    return _merge(merged, values)


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise InputError(f"{override!r}: write an override as key.path=value")
    value = parse_yaml(text, override, comments=False)
    for name in reversed(names):
        value = {name: value}
    return value


def _merge(
    under: Mapping[str, Any], over: Mapping[str, Any], location: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Merge config blocks recursively; any other value in ``over`` replaces that in ``under``.

    A mapping of free names, such as ``train.freeze``, is replaced whole: merging could never remove
    a name.
    """
    merged = dict(under)
    for key, value in over.items():
        below, place = merged.get(key), (*location, key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merge = both and bool(_keys_at(place))
        merged[key] = _merge(below, value, place) if merge else value  # type: ignore[arg-type]
    return merged


def _describe(problem: Any) -> str:
    """Describe one pydantic problem in one line."""
    location = _without_types(problem["loc"])
    key = ".".join(str(part) for part in location)
    value = problem["input"]
    if problem["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "literal_error":
        return f"{key}: {value!r} is not a choice; choose {problem['ctx']['expected']}"
    if problem["type"] == "value_error":
        reason = str(problem["ctx"]["error"])
        named = reason.partition(":")[0].partition(".")[0] in _keys_at(location)
        return f"{key}{'.' if named else ': '}{reason}" if key else reason
    if problem["loc"][-1] in ONE_OR_MORE:
        return f"{key}: expected a name or a list of names, got {shown(value)}"
    if problem["type"] in LIST_PROBLEMS:
        key = key.rpartition(".")[0] if problem["type"] == "missing" else key
        return f"{key}: {_list_needed(location)}, got {shown(value)}"
    message = PLAIN_MESSAGES.get(problem["type"], problem["msg"][0].lower() + problem["msg"][1:])
    return f"{key}: {message}, got {shown(value)}"


def _list_needed(location: Sequence[str | int]) -> str:
    """Say what list a key expects, with its default as an example.

    >>> _list_needed(["data", "image_size"]), _list_needed(["detector", "levels"])
    ('expected two numbers, such as [600, 1000]', 'expected a list')
    """
    block, (name, *_) = _block_at(location)
    field = block.model_fields[str(name)]
    kinds = _item_types(field.annotation)
    default = field.get_default(call_default_factory=True)
    example = f", such as {json.dumps(default)}" if default and isinstance(default, tuple) else ""
    if Ellipsis in kinds:
        return f"expected a list{example}"
    return f"expected {COUNTS[len(kinds)]} {'names' if str in kinds else 'numbers'}{example}"


def _item_types(annotation: Any) -> tuple[Any, ...]:
    """Item types of a list annotation: ``dict[str, tuple[int, int]] | None`` -> ``(int, int)``."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)
    return next(filter(None, map(_item_types, get_args(annotation))), ())


def _without_types(location: Sequence[str | int]) -> list[str | int]:
    """``("data", "train", "tuple[str, ...]", 0)`` -> ``["data", "train", 0]``.

    For a key with several possible types pydantic adds the type that it tried.
    """
    return [part for part in location if part not in ONE_OR_MORE]


def _keys_at(location: Sequence[Any]) -> list[str]:
    """The keys of the config model below a location."""
    block, rest = _block_at(location)
    return [] if rest else list(block.model_fields)


def _block_at(location: Sequence[Any]) -> tuple[type[BaseModel], Sequence[Any]]:
    """The innermost config block on the path to a location, and the rest of the path."""
    block: type[BaseModel] = Config
    for depth, part in enumerate(location):
        field = block.model_fields.get(str(part))
        nested = field.annotation if field else None
        if not (isinstance(nested, type) and issubclass(nested, BaseModel)):
            return block, location[depth:]
        block = nested
    return block, ()


def _leaves(raw: object, parsed: object, key: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield each leaf as its key, the value as written and the validated value."""
    if isinstance(raw, Mapping):
        for name, value in raw.items():
            below = parsed.get(name) if isinstance(parsed, Mapping) else getattr(parsed, name, None)
            yield from _leaves(value, below, f"{key}.{name}" if key else str(name))
    elif isinstance(raw, (list, tuple)) and isinstance(parsed, (list, tuple)):
        for position, (value, below) in enumerate(zip(raw, parsed, strict=False)):
            yield from _leaves(value, below, f"{key}.{position}")
    else:
        yield key, raw, parsed
