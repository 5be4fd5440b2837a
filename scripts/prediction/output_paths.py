"""Where drawn pictures and videos go, and that no file is lost by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data.errors import InputError
from scripts.prediction.inputs import Source
from scripts.prediction.pictures import picture_path


def target_of(source: Source, output: Path) -> Path:
    """The file that a source is drawn into, below ``output``: a .jpg, .jpeg, .png or .mp4."""
    path = output / source.inside
    return path.with_suffix(".mp4") if source.is_video else picture_path(path)


def check_targets(sources: Sequence[Source], output: Path | None, comp4: bool) -> None:
    """See that what is written replaces no input, and that results do not replace each other.

    Args:
        output: the folder of pictures; None where none are drawn.
        comp4: whether comp4 files are written, which name images without their endings.

    Raises:
        InputError: a source would be written over, or two would be one file or one name.
    """
    _refuse_equal(
        sources,
        lambda source: source.inside.as_posix(),
        "are both {} in the results; name the folder above both, or look at them one after the "
        "other, each with results of its own",
    )
    if output is not None:
        _refuse_sources(sources, output)
        _refuse_equal(
            sources,
            lambda source: str(target_of(source, output)),
            "would both be written to {}; look at them one after the other, each with another "
            "--output",
        )
    if comp4:
        _refuse_equal(
            [source for source in sources if not source.is_video],
            lambda source: source.name,
            "are both {} in comp4 files, which leave endings out; rename one of them, or leave "
            "--comp4 out",
        )


def _refuse_sources(sources: Sequence[Source], output: Path) -> None:
    originals = {source.path.resolve() for source in sources}
    for source in sources:
        target = target_of(source, output)
        if target.resolve() in originals:
            raise InputError(
                f"{source.path}: would be drawn into {target}, which is itself an input and would "
                "be lost; name another --output"
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
