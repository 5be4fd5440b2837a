"""A linear layer through oneDNN: the same results as ``F.linear`` up to rounding.

PyTorch multiplies float32 matrices with MKL, which does not use AMD processors fully; oneDNN, which
runs PyTorch's convolutions, does. The operation is private to PyTorch, so it is used only if it is
available.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@cache
def is_available() -> bool:
    """Return whether this version of PyTorch has the operation."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def _is_amd() -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and "AuthenticAMD" in info.read_text(encoding="utf-8", errors="replace")


def pays_here(x: Tensor) -> bool:
    """Return whether oneDNN is faster for ``(R, I)`` inputs: float32 on an AMD processor.

    Under autocast and in exported programs, PyTorch's own operation is kept.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and len(x) > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch.onnx.is_in_onnx_export()
        and _is_amd()
        and is_available()
    )


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``x @ weight.T + bias``; it cannot be differentiated twice.

    Args:
        x: ``(R, I)`` float32 on the CPU, R at least 1.
        weight: ``(O, I)``.
        bias: ``(O,)``.
    """
    output: Tensor = _Linear.apply(x, weight, bias)
    return output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, _ = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if for_x else None,
            _product(gradient.t(), x.t()) if for_weight else None,
            gradient.sum(dim=0),
        )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``(N, K)``, ``(M, K)`` and ``(M,)`` -> ``left @ right.T + bias``, ``(N, M)``."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product
