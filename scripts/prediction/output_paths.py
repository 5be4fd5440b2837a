"""Output paths of drawn images and videos, and checks that no file is overwritten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data.errors import InputError
from scripts.prediction.inputs import Source
from scripts.prediction.pictures import picture_path


def target_of(source: Source, output: Path) -> Path:
    """Return the file that a source is drawn to, below ``output``: .jpg, .jpeg, .png or .mp4."""
    path = output / source.inside
    return path.with_suffix(".mp4") if source.is_video else picture_path(path)


def check_targets(sources: Sequence[Source], output: Path | None, comp4: bool) -> None:
    """Check that outputs overwrite neither an input nor each other.

    Args:
        output: the folder of drawn images; None if nothing is drawn.
        comp4: whether comp4 files are written, which name images without their extensions.

    Raises:
        InputError: a source would be overwritten, or two would share a file or a name.
    """
    _refuse_equal(
        sources,
        lambda source: source.inside.as_posix(),
        "are both {} in the results; give their common parent folder, or run them separately with "
        "separate results",
    )
    if output is not None:
        _refuse_sources(sources, output)
        _refuse_equal(
            sources,
            lambda source: str(target_of(source, output)),
            "would both be written to {}; run them separately, each with its own --output",
        )
    if comp4:
        _refuse_equal(
            [source for source in sources if not source.is_video],
            lambda source: source.name,
            "are both {} in comp4 files, which omit extensions; rename one, or drop --comp4",
        )


def _refuse_sources(sources: Sequence[Source], output: Path) -> None:
    originals = {source.path.resolve() for source in sources}
    for source in sources:
        target = target_of(source, output)
        if target.resolve() in originals:
            raise InputError(
                f"{source.path}: would overwrite {target}, which is itself an input; choose "
                "another --output"
            )


def _refuse_equal(
    sources: Sequence[Source], called: Callable[[Source], str], complaint: str
) -> None:
    first: dict[str, Source] = {}
    for source in sources:
        other = first.setdefault(called(source), source)
        if other is not source:
            what = complaint.format(repr(called(source)))
            raise InputError(f"{other.path} and {source.path} {what}")
