"""Images kept in memory are those of the files, for any number of worker processes."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.annotations import Annotations
from data.config import ShapesConfig
from data.errors import InputError
from data.formats.shapes import load_shapes
from data.image_files import CachedImages, ImageFiles


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Annotations, Path]:
    root = tmp_path_factory.mktemp("shapes")
    shapes = ShapesConfig(train_images=6, val_images=1, image_size=(40, 56))
    return load_shapes(root, "train", shapes), root


def test_kept_images_are_those_of_the_files(drawn: tuple[Annotations, Path]) -> None:
    files, cache = ImageFiles(*drawn, 10**6), CachedImages(*drawn, 10**6)
    for _ in range(2):
        for row in (3, 0, 5):
            np.testing.assert_array_equal(cache.read(row), files.read(row))


def test_a_kept_image_cannot_be_changed_by_who_reads_it(drawn: tuple[Annotations, Path]) -> None:
    cache = CachedImages(*drawn, 10**6)
    cache.read(2)[:] = 0
    assert cache.read(2).any()


def test_what_one_process_has_decoded_another_reads_without_the_file(
    drawn: tuple[Annotations, Path], tmp_path: Path
) -> None:
    annotations, root = drawn
    copy = tmp_path / str(annotations.files[1])
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes((root / str(annotations.files[1])).read_bytes())
    cache = CachedImages(annotations, tmp_path, 10**6)
    worker = multiprocessing.get_context("fork").Process(target=cache.read, args=(1,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    copy.unlink()
    np.testing.assert_array_equal(cache.read(1), ImageFiles(*drawn, 10**6).read(1))


def test_images_that_no_machine_holds_are_refused(drawn: tuple[Annotations, Path]) -> None:
    annotations, root = drawn
    huge = replace(annotations, sizes=annotations.sizes * 10_000)
    with pytest.raises(InputError, match=r"data\.cache: .* this machine has"):
        CachedImages(huge, root, 10**6)
