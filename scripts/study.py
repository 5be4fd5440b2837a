"""Run the studies behind the paper's tables and figures, and tabulate and plot the results.

    python scripts/study.py run table2 --preset small --jobs 2
    python scripts/study.py table table2 --preset small
    python scripts/study.py plot table2 --preset small --figure 6
    python scripts/study.py list table2 --preset small
    python scripts/study.py keep table2 --preset small

A study is a file in configs/studies, or one of yours. Without a preset it has the paper's own scale
(VOC, COCO, GPUs). `run` does missing runs and resumes interrupted ones, so the same command may be
repeated and run in several shells at once. `key.path=value` at the end overrides every run:
data.root=/path sets the data folder, train.device=cpu the device.
`keep` writes the results of finished runs, as tables and curves need them, to the ledger, a folder
under version control; every command counts the runs in it as done.
Exit codes: 0 all done, 1 a run failed or was not kept, or a figure was not drawn, 2 unusable input,
128 + n stopped by signal n.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.errors import InputError, unreadable
from engine.config import flatten, split_words
from engine.process.atomic_file import write_atomically
from engine.process.outputs import check_outputs
from engine.process.standard_output import status_of_tool, tool
from engine.strict_yaml import parse_yaml
from scripts.number_types import at_least, listed
from scripts.studies.definition import Figure, Study, load_study, narrowed
from scripts.studies.insertion import insert
from scripts.studies.job import Job
from scripts.studies.ledger import LEDGER
from scripts.studies.machine import check_gpus, share_out
from scripts.studies.results import collect
from scripts.studies.run import is_locked
from scripts.studies.running import RunQueue, StoppedError, plan
from scripts.studies.tables import comma_separated, latex, markdown

RUNS = Path("runs/studies")
DECIDED = {"data.batch_size", "train.name", "train.output", "train.seed"}  # by the study


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    names, words = split_words(options.words)
    if not names:
        raise InputError("give a study, such as table2; see configs/studies")
    studies = [load_study(name, options.preset) for name in names]
    extra = _overrides(words, studies)
    if options.seeds:
        seeds = tuple(dict.fromkeys(options.seeds))
        studies = [study.model_copy(update={"seeds": seeds}) for study in studies]
    studies = [narrowed(study, options.only) for study in studies]
    for study in studies:
        if not any(study.cells()):
            raise InputError(
                f"{study.name}: no cell of the table matches all of --only; change them"
            )
    return COMMANDS[options.command](studies, extra, options)


def run(studies: Sequence[Study], extra: dict[str, Any], options: argparse.Namespace) -> int:
    """``run``: train and score what is missing."""
    check_outputs([], [], folders=[options.runs])
    jobs = [job for study in studies for job in jobs_of(study, extra, options)]
    left, wrong = plan(jobs)
    whole = [job for job in jobs if job.folder not in wrong]
    unkept: dict[Path, str] = {}
    if options.keep:
        _keep(whole, unkept, options)
        for folder, reason in unkept.items():
            print(f"not kept: {folder}: {reason}", file=sys.stderr)
    most = max(study.processes for study in studies)
    check_gpus(options.gpus or ())
    on_cpu = bool(whole) and all(job.run.config.train.device == "cpu" for job in whole)
    places = share_out(options.jobs, [] if on_cpu else options.gpus, options.processes, most)
    total, done = len({job.key for job in jobs}), len({job.key for job in whole}) - len(left)
    print(f"{total} runs: {done} done, {len(left)} to do", flush=True)
    queue = RunQueue(left, whole, dict(wrong), keep=options.keep)
    for folder, reason in wrong.items():
        print(f"cannot be run: {folder}: {reason}", file=sys.stderr)
    try:
        queue.work(places)
    except StoppedError:
        print("stopped; runs in progress are saved, rerun to continue", file=sys.stderr)
        return 128 + (queue.signal_number or 0)
    for folder in queue.failed:
        print(f"not done, see above: {folder}", file=sys.stderr)
    return 1 if queue.failed or unkept else 0


def jobs_of(study: Study, extra: dict[str, Any], options: argparse.Namespace) -> list[Job]:
    """Return the jobs of a study, the first seed of all cells first."""
    return [
        Job(study.run(labels, seed, extra), options.runs, study.score.split, options.ledger)
        for seed in study.seeds
        for labels in study.cells()
    ]


def show_list(studies: Sequence[Study], extra: dict[str, Any], options: argparse.Namespace) -> int:
    """``list``: print the progress and the folder of every run."""
    for study in studies:
        for job in jobs_of(study, extra, options):
            try:
                stage = "running" if is_locked(job.folder) else job.stage
                print(f"{stage:8} {job.results}")
            except InputError as error:
                print(f"refused  {error}")
            except OSError as error:
                print(f"refused  {unreadable(job.folder, error)}")
    return 0


def keep(studies: Sequence[Study], extra: dict[str, Any], options: argparse.Namespace) -> int:
    """``keep``: write the finished runs of the runs folder to the ledger."""
    jobs = [job for study in studies for job in jobs_of(study, extra, options)]
    _, wrong = plan(jobs)
    if not _keep([job for job in jobs if job.folder not in wrong], wrong, options):
        print("nothing new to keep: a run can be kept once it is trained and scored")
    for folder, reason in wrong.items():
        print(f"not kept: {folder}: {reason}", file=sys.stderr)
    return 1 if wrong else 0


def _keep(jobs: Sequence[Job], wrong: dict[Path, str], options: argparse.Namespace) -> int:
    """Write the results of finished jobs to the ledger; return the number of new ones.

    The reason why a job cannot be kept is noted in ``wrong``, by its folder.

    Raises:
        InputError: there is no ledger.
    """
    if options.ledger is None:
        raise InputError("--no-ledger: runs are kept in the ledger; drop it")
    number = 0
    for job in jobs:
        try:
            if job.keep():
                print(f"kept {job.run.folder(options.ledger)}")
                number += 1
        except InputError as error:
            wrong[job.folder] = str(error)
    return number


def table(studies: Sequence[Study], extra: dict[str, Any], options: argparse.Namespace) -> int:
    """``table``: print Markdown; write Markdown, LaTeX and CSV files."""
    is_part = bool(options.only or options.seeds)
    if is_part and options.into is not None:
        raise InputError(
            "--into: a partial table cannot replace the whole; drop --only and --seeds"
        )
    for study in studies:
        results = collect(study, options.runs, extra, options.ledger)
        text = markdown(results)
        if options.into is None:
            print(text)
        else:
            insert(options.into, study.name, text)
        folder = options.output or options.runs / "tables"
        for kind, content in (
            ("md", text),
            ("tex", latex(results)),
            ("csv", comma_separated(results)),
        ):
            name = f"{study.name}-part" if is_part else study.name
            write_atomically(folder / f"{name}.{kind}", content.encode())
    return 0


def plot(studies: Sequence[Study], extra: dict[str, Any], options: argparse.Namespace) -> int:
    """``plot``: write each figure that has runs as PNG and SVG; report the others."""
    try:
        from scripts.studies.figures import write_figure
        from scripts.studies.plotting import draw, shown_runs
    except ImportError as error:
        raise InputError(f"plot needs matplotlib ({error}); pip install matplotlib") from None
    missing = 0
    for study in studies:
        if not study.figures:
            print(f"{study.name} has no figures", file=sys.stderr)
        for number, figure in chosen_figures(study, options.figure).items():
            try:
                runs = shown_runs(study, figure, options.runs, extra, options.show, options.ledger)
                picture = draw(study, number, figure, runs, extra)
            except InputError as error:
                print(f"figure {number}: not drawn: {error}", file=sys.stderr)
                missing += 1
                continue
            folder = options.output or options.runs / "figures"
            for file in write_figure(picture, folder / f"{_file_name(number)}-{study.name}"):
                print(file)
    return 1 if missing else 0


def _file_name(number: str) -> str:
    return f"figure{number}" if number.isdigit() else number


def chosen_figures(study: Study, number: str | None) -> dict[str, Figure]:
    """Return the figures of a study, or only the requested one.

    Raises:
        InputError: the study has no such figure.
    """
    if number is None:
        return study.figures
    if number not in study.figures:
        known = ", ".join(study.figures) or "none"
        raise InputError(f"--figure {number}: {study.name} has no such figure; it has: {known}")
    return {number: study.figures[number]}


def _overrides(words: Sequence[str], studies: Sequence[Study]) -> dict[str, Any]:
    """Parse ``key.path=value`` words to values by key.

    Raises:
        InputError: the study sets or varies a key, whose labels would then be wrong.
    """
    axes = [axis for study in studies for axis in study.axes]
    varied = {key: axis.name for axis in axes for key in axis.varied_keys()}
    extra = {}
    for word in words:
        key, _, text = word.partition("=")
        value = parse_yaml(text, word, comments=False)
        keys = flatten({key: value}).keys()
        found = [varied[other] for own in keys for other in varied if _overlap(own, other)]
        if found:
            chosen = shlex.quote(f"{found[0]}=…")
            raise InputError(
                f"{word}: the study varies this key, so its labels would be wrong; select some "
                f"with --only {chosen}, or write your own study"
            )
        if DECIDED & keys:
            raise InputError(
                f"{word}: the study sets this key; use --processes and --gpus to divide its total "
                "batch, --runs for the folder, --seeds for the seeds"
            )
        extra[key] = value
    return extra


def _overlap(key: str, other: str) -> bool:
    """Return whether two dotted keys are equal, or one is in a block that the other names."""
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _path(text: str) -> Path:
    return Path(text).expanduser()  # in --runs=~/x the shell leaves the ~ as it is


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=tuple(COMMANDS), help="action")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="STUDY | key.path=value",
        help="studies, and config overrides of all runs",
    )
    parser.add_argument("--preset", help="scale defined in the study's file, such as small")
    parser.add_argument("--seeds", type=listed, metavar="0,1,…", help="seeds instead of its own")
    parser.add_argument("--runs", type=_path, default=RUNS, help="folder of the runs (%(default)s)")
    parser.add_argument("--output", type=_path, help="folder for tables or figures")
    parser.add_argument(
        "--ledger", type=_path, default=LEDGER, help="folder of the kept runs (docs/study)"
    )
    parser.add_argument(
        "--no-ledger",
        dest="ledger",
        action="store_const",
        const=None,
        help="ignore kept runs: rerun them, and show only new results",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=LABEL,…",
        help="only these cells, also seed=0,1; may be repeated for several axes",
    )
    running = parser.add_argument_group("run")
    running.add_argument("--jobs", type=at_least(1), default=1, help="parallel runs (1)")
    running.add_argument(
        "--gpus",
        type=listed,
        metavar="0,1,…",
        help="GPUs to divide among the jobs (all); one listed n times takes n small runs at once",
    )
    running.add_argument(
        "--processes",
        type=at_least(1),
        help="processes per run (one per GPU; CPU: the study's number)",
    )
    running.add_argument(
        "--keep", action="store_true", help="write each run to the ledger once it is scored"
    )
    tables = parser.add_argument_group("table")
    tables.add_argument(
        "--into", type=_path, help="Markdown file to insert the table into, between its markers"
    )
    plots = parser.add_argument_group("plot")
    plots.add_argument("--figure", help="only this figure: 1, 2, 3, 5, 6, 7 or scores")
    plots.add_argument(
        "--show",
        action="append",
        metavar="TITLE=FOLDER",
        help="a run to show instead of the study's; may be repeated",
    )
    return parser


COMMANDS: dict[str, Callable[[Sequence[Study], dict[str, Any], argparse.Namespace], int]] = {
    "run": run,
    "table": table,
    "plot": plot,
    "list": show_list,
    "keep": keep,
}


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
