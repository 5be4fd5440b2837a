"""Check whether a run can be resumed exactly with a config and a number of ranks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.annotations import Annotations
from data.errors import InputError
from engine.checkpoint import check_classes
from engine.config import Config, flatten
from engine.process.distributed import Ranks
from engine.run_folder import load_shared
from engine.state import Progress

log = logging.getLogger(__name__)

# Keys that change no result, except for the rounding of another device or program: where and how
# fast a run goes, what it checks and what it logs.
NEUTRAL_KEYS = frozenset(
    {
        "data.cache",
        "data.follow_links",
        "data.max_image_pixels",
        "data.prefetch",
        "data.workers",
        "evaluate.engine",
        "train.checkpoint_every",
        "train.device",
        "train.log_every",
        "train.output",
        "train.pictures",
        "train.trackers",
    }
)
# Free to change: a resumed run equals one started with the new value (except for the score of the
# old last epoch if evaluate.every is above 1).
FREE_KEYS = NEUTRAL_KEYS | {"train.epochs", "train.name", "train.patience"}
# Free if the checkpoint has digests of the data, which are compared instead: a split can be named
# in several ways. Classes are compared separately.
DATA_KEYS = frozenset({"data.classes", "data.root", "data.train", "data.val"})
# With a cosine schedule, train.epochs changes the lr of every iteration.
COSINE_KEYS = frozenset({"train.epochs"})
# The global batch is compared instead, together with the number of ranks.
BATCH_KEYS = frozenset({"data.batch_size"})
# Scores with different values of these cannot be compared. The digest of the annotations identifies
# the scored images; in checkpoints without one, data.limit and data.val do.
SCORING_KEYS = frozenset(
    {
        "data.exif",
        "data.image_size",
        "data.limit",
        "data.on_damaged",
        "data.val",
        "detector.detections_per_image",
        "detector.nms_threshold",
        "detector.retinanet.topk_candidates",
        "detector.rpn.nms_threshold",
        "detector.rpn.post_nms_top_n_test",
        "detector.rpn.pre_nms_top_n_test",
        "detector.rpn.score_threshold",
        "detector.score_threshold",
        "evaluate.flip",
        "evaluate.iou",
        "train.best",
    }
)
# Keys that may never change, as they determine the saved state.
WEIGHTING = "loss.weighting."
IMMUTABLE_KEYS = {
    WEIGHTING: "a resumed run keeps the state of its weighting",
    "train.optimizer": "a resumed run keeps the state of its optimizer",
    "detector.weights": "initial weights are only read when a run starts",
}


def load_resumed(
    path: Path, config: Config, ranks: Ranks, allow_changed: bool
) -> tuple[Path, dict[str, Any]]:
    """Load the checkpoint to resume a run from. Every rank must call it.

    Returns:
        The file and its contents.

    Raises:
        InputError: there is none, or the run cannot be resumed from it: see ``check_resume``.
    """
    source, saved = load_shared(path, ranks)
    done = (saved["progress"].get(key, 0) for key in ("step", "epoch"))
    log.info("--resume: %s: steps done: %d, epochs done: %d", source, *done)
    check_resume(saved, config, ranks.world_size, allow_changed)
    return source, saved


def identity(
    config: Config, classes: Sequence[str], ranks: Ranks, data: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of a checkpoint besides the state, for ``check_resume`` and ``check_data``."""
    return {
        "config": config.model_dump(mode="json"),
        "classes": list(classes),
        "global_batch": config.global_batch(ranks.world_size),
        "world_size": ranks.world_size,
        **data,
    }


def digests(training: Annotations, held_out: Annotations) -> dict[str, Any]:
    """Data that ``check_data`` compares: number of training images, digests of both splits."""
    return {
        "images": len(training),
        "training": training.digest(),
        "validation": held_out.digest(),
    }


def check_resume(
    saved: Mapping[str, Any], config: Config, world_size: int, allow_changed: bool = False
) -> None:
    """Compare a checkpoint's config with the config to continue with.

    Raises:
        InputError: the classes, the global batch, the weighting, the optimizer or the initial
            weights differ, whether changes are allowed or not; or other keys that affect the result
            differ and changes are not allowed.
    """
    changed = changed_keys(saved, config)
    _refuse_immutable_changes(changed)
    check_classes(saved, config.data.classes)
    _check_batch(saved, config, world_size)
    if changed and not allow_changed:
        raise InputError(
            "--resume: the config has changed since the checkpoint:\n  "
            + "\n  ".join(changed.values())
            + "\nchange it back, or use --allow-changed to continue with the new one"
        )
    for line in changed.values():
        log.warning("--allow-changed: %s", line)
    if saved.get("world_size", world_size) != world_size:
        log.warning(
            "--resume: processes: %d, previously %d: batches hold the same images, but what is "
            "computed per process differs: sampling, batch norm, normalizer: batch",
            world_size,
            saved["world_size"],
        )


def changed_keys(saved: Mapping[str, Any], config: Config) -> dict[str, str]:
    """Differences from a checkpoint's config that affect the result, in words, by key."""
    before, now = flatten(saved["config"]), config.flat()
    # Keys that an older checkpoint does not have had their default values.
    before = {**{key: value for key, value in _defaults().items() if key in now}, **before}
    free = FREE_KEYS | BATCH_KEYS
    if {"training", "validation"} <= saved.keys():
        free |= DATA_KEYS
    if config.train.schedule == "cosine":
        free -= COSINE_KEYS
    return {
        key: f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in free
    }


def _refuse_immutable_changes(changed: Mapping[str, str]) -> None:
    for start, reason in IMMUTABLE_KEYS.items():
        if lines := [line for key, line in changed.items() if key.startswith(start)]:
            raise InputError(
                f"--resume: {'; '.join(lines)}: {reason}; change it back, or start a run "
                "with another train.name from these weights (set detector.weights to this last.pt)"
            )


def _check_batch(saved: Mapping[str, Any], config: Config, world_size: int) -> None:
    batch = config.global_batch(world_size)
    if batch != saved["global_batch"]:
        raise InputError(
            f"--resume: the run was trained with global batches of {saved['global_batch']} images, "
            f"but {config.data.batch_size} x {world_size} processes make {batch}: the data order "
            "would differ; change data.batch_size or the number of processes"
        )


def check_data(
    saved: Mapping[str, Any], data: Mapping[str, Any], allow_changed: bool = False
) -> None:
    """Compare a checkpoint's data with the data to continue with.

    Args:
        saved: the checkpoint; entries that an older one lacks are not compared.
        data: the result of ``digests``.
        allow_changed: whether to continue with changed data, with a warning.

    Raises:
        InputError: the data differ and ``allow_changed`` is not set.
    """
    before = {key: saved.get(key, own) for key, own in data.items()}
    changed = []
    if before["images"] != data["images"]:
        changed.append(
            f"the training split had {before['images']} images and has {data['images']}: "
            "the data order differs"
        )
    elif before["training"] != data["training"]:
        changed.append("the images or objects of the training split, or their order, have changed")
    if before["validation"] != data["validation"]:
        changed.append("the images or objects of the validation split have changed")
    if changed and not allow_changed:
        raise InputError(
            f"--resume: {'; '.join(changed)}; restore the data, or use --allow-changed to continue "
            "with the new data"
        )
    for text in changed:
        log.warning("--allow-changed: %s", text)


def keep_comparable(
    progress: Progress, saved: Mapping[str, Any], config: Config, data: Mapping[str, Any]
) -> None:
    """Reset the best score of a resumed run if new scores cannot be compared with it."""
    if progress.evaluated < config.train.epochs and not scores_alike(saved, config, data):
        log.warning(
            "the best score so far cannot be compared with new ones: the search for the best "
            "restarts"
        )
        progress.best_score = progress.best_epoch = None


def scores_alike(saved: Mapping[str, Any], config: Config, data: Mapping[str, Any]) -> bool:
    """Whether new scores can be compared with those of a checkpoint's run.

    ``data`` is the result of ``digests``.
    """
    before = {**_defaults(), **flatten(saved["config"])}
    now = config.flat()
    compared = SCORING_KEYS
    if "validation" in saved:
        compared -= DATA_KEYS
    same_images = saved.get("validation", data["validation"]) == data["validation"]
    return same_images and all(before.get(key) == now.get(key) for key in compared)


def _defaults() -> dict[str, Any]:
    return Config().flat()
