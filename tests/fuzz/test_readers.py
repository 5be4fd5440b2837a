"""Whatever a file holds, a reader takes it or says what is wrong: hypothesis looks for exceptions.

`FUZZ_EXAMPLES=100000 pytest -n0 tests/fuzz` looks longer; `fuzz_readers.py` is guided by coverage.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from targets import SEEDS, Fuzzed, accepts, resume, tiny_checkpoint, words_of

from data.errors import InputError
from engine.checkpoint import save_checkpoint

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
short = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # the suite must not fail by chance
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**53, 2**63, 1e308, 1e-320, 10**400]),
)
TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["../x", "/etc/passwd", "a\0b", "\ud800", "a.jpg", "cat", "NaN", "1e999", "~"]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Fuzzed:
    return Fuzzed(tmp_path_factory.mktemp("fuzzed"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested lists and mappings, and of nothing in a tensor."""
    yield path
    if isinstance(value, (dict, list)):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(below, (*path, key))


def with_another(value: Any, path: tuple[Any, ...], other: Any, drop: bool) -> Any:
    """A copy in which the value at one place is exchanged or missing."""
    if not path:
        return other
    changed = copy.deepcopy(value)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if drop:
        del holder[path[-1]]
    else:
        holder[path[-1]] = other
    return changed


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """Nested values with one to three places changed."""
    for _ in range(draw(st.integers(1, 3))):
        where = sorted(places(value), key=repr)
        path = draw(st.sampled_from(where))
        value = with_another(value, path, draw(VALUES), draw(st.booleans()) and bool(path))
        if not isinstance(value, (dict, list)):
            break
    return value


@st.composite
def spliced(draw: st.DrawFn, text: bytes) -> bytes:
    """Bytes with some of them replaced, doubled or cut out, also by words of their own."""
    words = words_of(text)[:200]
    part = st.one_of(st.binary(max_size=8), st.sampled_from(words), st.sampled_from([b"", b"\xff"]))
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(text)))
        last = min(len(text), first + draw(st.sampled_from([0, 1, 1, 2, 8, 60])))
        text = text[:first] + draw(part) * draw(st.sampled_from([1, 1, 2, 300])) + text[last:]
    return text


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_are_accepted(name: str, fuzzed: Fuzzed) -> None:
    assert all(accepts(getattr(fuzzed, name), seed) for seed in SEEDS[name])


@pytest.mark.parametrize("name", SEEDS)
def test_any_bytes_are_taken_or_refused(name: str, fuzzed: Fuzzed) -> None:
    @short
    @given(st.one_of([st.binary(max_size=200), *(spliced(seed) for seed in SEEDS[name])]))
    def check(content: bytes) -> None:
        accepts(getattr(fuzzed, name), content)

    check()


@pytest.mark.parametrize("name", ["coco", "detections"])
def test_any_json_is_taken_or_refused(name: str, fuzzed: Fuzzed) -> None:
    @short
    @given(st.one_of(VALUES, edited(json.loads(SEEDS[name][0]))))
    def check(value: Any) -> None:
        accepts(getattr(fuzzed, name), json.dumps(value).encode())

    check()


def test_any_yaml_is_taken_or_refused(fuzzed: Fuzzed) -> None:
    config = tiny_checkpoint()["config"]

    @short
    @given(edited(config))
    def check(value: Any) -> None:
        accepts(fuzzed.yaml, json.dumps(value).encode())  # JSON is YAML

    check()


def test_any_checkpoint_of_plain_values_is_taken_or_refused(tmp_path: Path) -> None:
    @short
    @given(edited(tiny_checkpoint()))
    def check(contents: Any) -> None:
        if isinstance(contents, dict) and all(isinstance(key, str) for key in contents):
            save_checkpoint(tmp_path / "last.pt", contents)
        else:
            torch.save(contents, tmp_path / "last.pt")
        (tmp_path / "previous.pt").unlink(missing_ok=True)
        with suppress(InputError):
            resume(tmp_path)

    check()


def test_a_checkpoint_with_exchanged_tensors_is_refused(tmp_path: Path) -> None:
    contents, rng = tiny_checkpoint(), random.Random(0)
    tensors = ("weight", "bias", "lambdas")
    for path in [path for path in places(contents) if path and path[-1] in tensors]:
        other = torch.zeros([rng.randrange(3) for _ in range(rng.randrange(1, 5))])
        save_checkpoint(tmp_path / "last.pt", with_another(contents, path, other, drop=False))
        (tmp_path / "previous.pt").unlink(missing_ok=True)
        with pytest.raises(InputError, match="does not fit"):
            resume(tmp_path)
