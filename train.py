"""Train a detector.

python train.py --config configs/quickstart.yaml [--resume] [key.path=value ...]
torchrun --nproc-per-node=2 train.py --config ... [--resume] [key.path=value ...]
"""

from __future__ import annotations

from engine.process.allocator import keep_freed_memory
from engine.process.threads import limit_spinning

limit_spinning()  # torch reads it when it is imported
keep_freed_memory()

# ruff: noqa: E402
import argparse
import logging
import shlex
import sys
from contextlib import closing
from pathlib import Path

import torch
import torchvision

from engine.build import build_loader, build_splits, build_state
from engine.config import Config, dump_config, load_config
from engine.config_reference import help_text
from engine.dry_run import dry_run
from engine.evaluation.validation import build_validation
from engine.exit_status import exit_status
from engine.freezing import Freezing
from engine.loop import Training
from engine.process.console import start_logging
from engine.process.distributed import Ranks, leave, start_ranks
from engine.process.signals import StopRequest
from engine.resume import check_data, digests, identity, keep_comparable, load_resumed
from engine.run_folder import RunFolder, holds_checkpoint, open_run_folder
from engine.tracking.tracker import Tracker
from engine.train_step import TrainStep

MEMORY_CURE = (
    "data.batch_size (train.accumulate makes up for it), data.image_size or "
    "detector.roi.batch_size_per_image, or try train.amp=bf16"
)
log = logging.getLogger("train")


def main() -> int:
    """Run the command line; return the exit code."""
    arguments = parse_arguments()

    def command(stop: StopRequest) -> None:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(dump_config(config.model_dump(mode="json")), end="")
            return
        with start_ranks(config.train.device) as ranks:
            if arguments.dry_run:
                start_logging(None, logging.INFO, ranks.rank)
                report = dry_run(config, ranks, stop)
                if ranks.is_main:
                    print(report)
                return
            train(
                config,
                ranks,
                stop,
                resume=arguments.resume,
                allow_changed=arguments.allow_changed,
                requeue=arguments.requeue,
            )

    return exit_status(command, MEMORY_CURE, restart_hint="continue with --resume")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; its help lists every key of a config."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="YAML config file; configs/ has examples")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument(
        "--requeue",
        action="store_true",
        help="resume if there is a checkpoint, else start: for schedulers that rerun a command",
    )
    parser.add_argument(
        "--allow-changed",
        action="store_true",
        help="resume even if the config or the data have changed",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the config with every key and exit"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train on one batch, evaluate one, print a model summary; write no run",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="config overrides")
    return parser.parse_intermixed_args()


def train(
    config: Config,
    ranks: Ranks,
    stop: StopRequest,
    *,
    resume: bool,
    allow_changed: bool,
    requeue: bool,
) -> None:
    """Open the run folder, start logging and train."""
    with open_run_folder(config, ranks, resume=resume, requeue=requeue) as path:
        # The folder of the main rank may be on another machine.
        start_logging(path if path.is_dir() else None, rank=ranks.rank)
        resume = resume or (requeue and ranks.broadcast(holds_checkpoint(path)))
        train_in(path, config, ranks, stop, resume=resume, allow_changed=allow_changed)


def train_in(
    path: Path,
    config: Config,
    ranks: Ranks,
    stop: StopRequest,
    *,
    resume: bool,
    allow_changed: bool,
) -> None:
    """Build the parts of a run in its folder and run the training loop."""
    log.info("%s", environment(ranks))
    source, saved = load_resumed(path, config, ranks, allow_changed) if resume else (None, None)
    training, held_out = build_splits(config, ranks, saved)
    data = digests(training, held_out)
    if saved is not None:
        check_data(saved, data, allow_changed)
    stop.check_together(ranks)
    loader = build_loader(config, training, ranks)
    state = build_state(config, training.classes, len(loader), ranks, saved)
    if saved is not None:
        keep_comparable(state.progress, saved, config, data)
    freezing = Freezing(state.detector, config.train.freeze)
    validation = build_validation(config, held_out, ranks, stop)
    stop.check_together(ranks)
    folder = RunFolder(path, ranks, identity(config, training.classes, ranks, data))
    model = ranks.wrap(state.detector, has_frozen_parts=bool(config.train.freeze))
    train_step = TrainStep(state, model, config.train, ranks, training.files)
    if source is not None:
        folder.restore_last(source)
    progress = state.progress if resume else None
    with (
        closing(loader),
        closing(validation.loader),
        Tracker(path, state.weighting.pairs, config, progress, enabled=ranks.is_main) as tracker,
    ):
        Training(
            state=state,
            train_step=train_step,
            freezing=freezing,
            loader=loader,
            global_batch=config.global_batch(ranks.world_size),
            config=config.train,
            evaluate_every=config.evaluate.every,
            ranks=ranks,
            tracker=tracker,
            stop=stop,
            folder=folder,
            validation=validation,
        ).run()
    log.info("done: %s", path)


def environment(ranks: Ranks) -> str:
    """The command, processes, device and library versions of a run, for its log."""
    number = f"{ranks.world_size} process" + "es" * (ranks.world_size > 1)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    return f"{shlex.join(sys.argv)}: {number} on {ranks.device.type}, {versions}"


if __name__ == "__main__":
    leave(main())
