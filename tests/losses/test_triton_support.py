"""Where the kernels run: on GPUs, unless Triton is not there or cannot compile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from losses import triton_support

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    triton_support._has_triton.cache_clear()
    yield
    triton_support._has_triton.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, active: object) -> None:
    """A stand-in for Triton, whose driver is as given."""
    runtime = ModuleType("triton.runtime")
    runtime.driver = SimpleNamespace(active=active)
    monkeypatch.setattr(triton_support, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)


def test_a_cpu_has_none_and_a_gpu_has_them_where_triton_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, SimpleNamespace(get_current_target=lambda: "sm_90"))
    assert [triton_support.has_kernels(device) for device in (CPU, GPU)] == [False, True]


def test_without_triton_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "find_spec", lambda _: None)
    assert not triton_support.has_kernels(GPU)


def test_where_triton_finds_no_compiler_it_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> str:
        raise RuntimeError("Failed to find C compiler")

    install(monkeypatch, SimpleNamespace(get_current_target=fail))
    assert [triton_support.has_kernels(GPU) for _ in range(2)] == [False, False]
    assert caplog.text.count("Failed to find C compiler") == 1
