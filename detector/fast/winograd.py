"""3 x 3 convolutions with fewer products, on the CPU: Winograd's minimal filtering F(4 x 4, 3 x 3).

Lavin and Gray, https://arxiv.org/abs/1509.09308, equation 8: a 6 x 6 tile ``d`` and a 3 x 3
filter ``g`` give the 4 x 4 outputs ``A' [(G g G') * (B' d B)] A``. A pair of channels then costs
36 products per tile instead of 144, and those of all tiles and channels form 36 matrix products.
The gradients are computed in the same way.

The results are those of PyTorch's convolution up to rounding errors, which are larger here: 2e-6 of
the norm of the output instead of 1e-6 (``tests/detector/test_winograd.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

OUTPUT, TILE = 4, 6  # sides of what a tile gives, and of the tile
VALUES_AT_ONCE = 3 * 2**20  # of transformed tiles: larger blocks leave the cache and cost memory

# Below these the transforms cost more than they save: measured with 64 to 819 channels and maps of
# 13 x 13 to 100 x 100 (docs/performance.md).
LEAST_CHANNELS = 192
LEAST_TILES = 128
LARGEST_WASTE = 1.4  # values of all tiles over values of the maps

# Section 4.2 of the paper: for the points 0, 1, -1, 2, -2 and infinity.
_B = (  # transposed
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_A = (  # transposed
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


class WinogradConv2d(nn.Conv2d):
    """Replaces a convolution and keeps its weights; uses PyTorch's where Winograd is not faster."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(convolution.__dict__)

    def convolve_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Convolve several maps; the weights are transformed only once."""
        if _is_3x3(self) and pays(maps, self.weight):
            return convolve(maps, self.weight, self.bias)
        return [self(values) for values in maps]

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if _is_3x3(self) and pays([x], weight):
            return convolve([x], weight, bias)[0]
        return super()._conv_forward(x, weight, bias)


def use_winograd(network: nn.Module) -> None:
    """Replace all convolutions of a network that are wide enough."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and _is_3x3(child) and _is_wide(child.weight):
                setattr(module, name, WinogradConv2d(child))


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Use PyTorch's convolutions in this process while the context is active."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


_switched_off = False


def pays(maps: Sequence[Tensor], weight: Tensor, padding: int = 1) -> bool:
    """Return whether ``convolve`` is faster: float32 on the CPU, wide layers, large maps.

    Maps whose sides leave too much of the last tiles unused are excluded. Under autocast and in
    exported programs, PyTorch's own operation is kept.
    """
    return (
        not _switched_off
        and maps[0].device.type == weight.device.type == "cpu"
        and maps[0].dtype == weight.dtype == torch.float32
        and torch.backends.mkl.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch.onnx.is_in_onnx_export()
        and _is_wide(weight)
        and _has_many_tiles(maps, padding)
    )


def _is_3x3(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == (3, 3)
        and convolution.stride == convolution.padding == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
    )


def _is_wide(weight: Tensor) -> bool:
    return min(weight.shape[:2]) >= LEAST_CHANNELS


def _has_many_tiles(maps: Sequence[Tensor], padding: int) -> bool:
    tiles = values = 0
    for each in maps:
        height, width = (side + 2 * padding - 2 for side in each.shape[2:])
        tiles += len(each) * -(-height // OUTPUT) * -(-width // OUTPUT)
        values += len(each) * height * width
    return tiles >= LEAST_TILES and tiles * OUTPUT * OUTPUT <= LARGEST_WASTE * values


def convolve(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, padding: int = 1
) -> list[Tensor]:
    """Compute ``F.conv2d(map, weight, bias, padding=padding)`` of each map; differentiable once.

    Args:
        maps: ``(B_l, C, H_l, W_l)`` float32 on the CPU, of at least one value.
        weight: ``(K, C, 3, 3)``.
        bias: ``(K,)``.
        padding: number of zeros on each side: 0, 1 or 2.

    Returns:
        ``(B_l, K, H_l + 2 * padding - 2, W_l + 2 * padding - 2)``, in channels-last order.
    """
    outputs: tuple[Tensor, ...] = _Convolution.apply(weight, bias, padding, *maps)
    return list(outputs)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, padding: int, *maps: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weight, *maps)
        ctx.padding = padding
        return tuple(_forward(maps, _filters(weight, False).transpose(1, 2), bias, padding))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, *maps = ctx.saved_tensors
        for_weight, for_bias, _, *for_maps = ctx.needs_input_grad
        map_gradients: list[Tensor | None] = [None] * len(maps)
        if any(for_maps):  # of all of them: the levels of a pyramid are trained together
            map_gradients = list(_forward(gradients, _filters(weight, True), None, 2 - ctx.padding))
        of_bias = torch.stack([each.sum(dim=(0, 2, 3)) for each in gradients]) if for_bias else None
        return (
            _weight_gradient(maps, gradients, ctx.padding) if for_weight else None,
            None if of_bias is None else of_bias.sum(dim=0),
            None,
            *map_gradients,
        )


def _forward(
    maps: Sequence[Tensor], filters: Tensor, bias: Tensor | None, padding: int
) -> Iterator[Tensor]:
    """Convolve with transformed filters ``(36, C, K)``."""
    for values in maps:
        height, width = (side + 2 * padding - 2 for side in values.shape[2:])
        shape = (len(values), filters.shape[2], height, width)
        output = torch.empty(shape, dtype=values.dtype, memory_format=torch.channels_last)
        for images, rows in _chunks(output, max(filters.shape)):
            tiles = _input_tiles(values[images], rows, _grid(output)[1], padding)
            products = torch.bmm(tiles.transpose(0, 1), filters)
            _put_tiles(
                _matrix(_A) @ products.view(TILE * TILE, -1), _cut(output, images, rows), bias
            )
        yield output


def _filters(weight: Tensor, rotated: bool) -> Tensor:
    """Transform ``(K, C, 3, 3)`` -> ``(36, K, C)``; ``rotated``: rotate the filters by 180°."""
    taps = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (_matrix(_G) @ (taps.flip(0) if rotated else taps)).view(-1, *weight.shape[:2])


def _weight_gradient(maps: Sequence[Tensor], gradients: Sequence[Tensor], padding: int) -> Tensor:
    """Compute the weights' gradient ``(K, C, 3, 3)`` by the transposed transforms, in reverse."""
    channels, filters = maps[0].shape[1], gradients[0].shape[1]
    total = maps[0].new_zeros(TILE * TILE, filters, channels)
    for values, gradient in zip(maps, gradients, strict=True):
        for images, rows in _chunks(gradient, max(channels, filters)):
            tiles = _input_tiles(values[images], rows, _grid(gradient)[1], padding)
            part = _output_tiles(_cut(gradient, images, rows))
            theirs = torch.matmul(_matrix(_A).t(), part)
            total.baddbmm_(theirs.permute(1, 2, 0), tiles.transpose(0, 1))
    taps = _matrix(_G).t() @ total.view(TILE * TILE, -1)
    return taps.view(3, 3, filters, channels).permute(2, 3, 0, 1)


@cache
def _matrix(factor: tuple[tuple[float, ...], ...]) -> Tensor:
    """Write the product with a factor on both sides of a tile as a matrix on its flat values."""
    one_side = torch.tensor(factor, dtype=torch.float64)
    return torch.kron(one_side, one_side).float()


def _chunks(output: Tensor, channels: int) -> Iterator[tuple[slice, slice]]:
    """Split images and rows of tiles into chunks whose transforms fit into the cache."""
    rows, columns = _grid(output)
    most = max(1, VALUES_AT_ONCE // (columns * TILE * TILE * channels))  # rows at once
    parts = -(-rows // most)
    images, height = max(1, most // rows), -(-rows // parts)
    for first in range(0, len(output), images):
        for top in range(0, rows, height):
            yield slice(first, first + images), slice(top, min(top + height, rows))


def _cut(output: Tensor, images: slice, rows: slice) -> Tensor:
    """Return the part of ``(B, K, H, W)`` that these rows of tiles compute."""
    return output[images, :, OUTPUT * rows.start : OUTPUT * rows.stop]


def _grid(output: Tensor) -> tuple[int, int]:
    """Return the number of rows and columns of tiles of ``(B, K, H, W)``."""
    return -(-output.shape[2] // OUTPUT), -(-output.shape[3] // OUTPUT)


def _input_tiles(values: Tensor, rows: slice, columns: int, padding: int) -> Tensor:
    """``(B, C, H, W)`` -> ``(T, 36, C)``: transformed overlapping tiles, zero outside the map."""
    height, width = values.shape[2:]
    top = padding - OUTPUT * rows.start  # where negative, so much is left out
    bottom = OUTPUT * rows.stop + TILE - OUTPUT - padding - height
    right = OUTPUT * columns + TILE - OUTPUT - padding - width
    sides = (0, 0, padding, right, top, bottom)
    padded = F.pad(values.permute(0, 2, 3, 1), sides).contiguous()
    image, row, column, channel = padded.stride()
    tiles = padded.as_strided(
        (len(values), rows.stop - rows.start, columns, TILE, TILE, values.shape[1]),
        (image, OUTPUT * row, OUTPUT * column, row, column, channel),
    )
    return torch.matmul(_matrix(_B), tiles.reshape(-1, TILE * TILE, values.shape[1]))


def _output_tiles(values: Tensor) -> Tensor:
    """``(B, K, H, W)`` -> ``(T, 16, K)``: adjacent tiles, zero outside the map."""
    rows, columns = _grid(values)
    bottom, right = OUTPUT * rows - values.shape[2], OUTPUT * columns - values.shape[3]
    padded = F.pad(values.permute(0, 2, 3, 1), (0, 0, 0, right, 0, bottom))
    tiles = padded.reshape(len(values), rows, OUTPUT, columns, OUTPUT, -1)
    return tiles.transpose(2, 3).reshape(-1, OUTPUT * OUTPUT, values.shape[1])


def _put_tiles(tiles: Tensor, output: Tensor, bias: Tensor | None) -> None:
    """Write ``(16, T * K)`` plus the bias to ``output (B, K, H, W)``; the excess is discarded."""
    grid = tiles.view(OUTPUT, OUTPUT, len(output), *_grid(output), -1).permute(2, 3, 0, 4, 1, 5)
    pixels = output.permute(0, 2, 3, 1)
    for rows, height in _whole_and_rest(output.shape[2]):
        for columns, width in _whole_and_rest(output.shape[3]):
            part = grid[:, rows, :height, columns, :width]
            image, row, column, channel = pixels.stride()
            strides = (image, OUTPUT * row, row, OUTPUT * column, column, channel)
            start = (rows.start * row + columns.start * column) * OUTPUT + pixels.storage_offset()
            place = pixels.as_strided(part.shape, strides, start)
            if bias is None:
                place.copy_(part)
            else:
                torch.add(part, bias, out=place)


def _whole_and_rest(side: int) -> Iterator[tuple[slice, int]]:
    """Yield the tiles of a side with four values, then the last one if it has fewer."""
    whole, rest = divmod(side, OUTPUT)
    if whole:
        yield slice(0, whole), OUTPUT
    if rest:
        yield slice(whole, whole + 1), rest
