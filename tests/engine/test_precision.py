"""Which precision a run computes in, and what is said of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine import precision
from engine.precision import Amp, autocast, cpu_has_bf16, log_precision, precision_of

CPU = torch.device("cpu")
Give = Callable[[str | None], None]


@pytest.fixture
def give_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Give]:
    """Let the system describe the CPU so, or not at all."""

    def give(text: str | None) -> None:
        file = tmp_path / "cpuinfo"
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(precision, "CPU_INFO", file)
        cpu_has_bf16.cache_clear()

    yield give
    cpu_has_bf16.cache_clear()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16 sse\n", "bf16"),
        ("flags\t: fpu amx_bf16\n", "bf16"),
        ("Features\t: fp asimd bf16 i8mm\n", "bf16"),
        ("flags\t\t: fpu avx2 avx512f\nbugs\t\t: bf16\n", "none"),
        ("model name : some\n", "none"),
        (None, "none"),
    ],
)
def test_auto_is_bf16_where_the_cpu_computes_in_it(
    text: str | None, found: str, give_cpu: Give
) -> None:
    give_cpu(text)
    assert precision_of("auto", CPU) == found
    with autocast(CPU, "auto"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if found == "bf16" else torch.float32)


@pytest.mark.parametrize(
    ("amp", "text", "level", "said"),
    [
        ("auto", "flags : avx2\n", "INFO", "auto selects none"),
        ("bf16", "flags : avx2\n", "WARNING", "without bf16 instructions"),
        ("bf16", "flags : amx_bf16\n", None, ""),
        ("bf16", None, None, ""),
        ("none", "flags : avx2\n", None, ""),
    ],
)
def test_what_costs_time_is_said(
    amp: Amp, text: str | None, level: str | None, said: str, give_cpu: Give,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    give_cpu(text)
    with caplog.at_level(logging.INFO):
        log_precision(amp, CPU)
    assert [record.levelname for record in caplog.records] == ([level] if level else [])
    assert said in caplog.text


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_what_is_named_is_taken_everywhere(amp: Amp, give_cpu: Give) -> None:
    give_cpu("flags : avx2\n")
    assert precision_of(amp, CPU) == precision_of(amp, torch.device("cuda")) == amp
