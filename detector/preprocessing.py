"""A list of images -> one normalized, padded batch, on the device where the images are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

# ImageNet statistics in 0..1, RGB, which torchvision's weights were trained with.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

DIVISOR = 32  # the sides of a batch are multiples of this


class Preprocessing(nn.Module):
    """Normalizes images, ``(x - mean) / std``, and pads them at the right and bottom with zeros.

    It does not resize. It replaces the ``transform`` of torchvision's detectors, and has no entry
    in the state dict.

    Args:
        channels_last: use the channels-last memory format for the batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        for name, values in (("mean", IMAGE_MEAN), ("std", IMAGE_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Sequence[Tensor]) -> ImageList:
        """``(3, H_b, W_b)`` uint8, or floating point in 0..1 -> the batch in float32.

        Returns:
            ``tensors``: ``(B, 3, H, W)`` with H and W the largest sides, rounded up;
            ``image_sizes``: the ``(H_b, W_b)`` as host integers.

        Raises:
            ValueError: there are no images, or one does not have the shape ``(3, H, W)``.
        """
        if len(images) == 0:  # images may be one tensor
            raise ValueError("a detector needs at least one image")
        sizes = [_size_of(image) for image in images]
        height = padded(max(height for height, _ in sizes))
        width = padded(max(width for _, width in sizes))
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        shape = (len(images), 3, height, width)
        batch = torch.empty(shape, device=self.mean.device, memory_format=order)
        kinds = {image.is_floating_point() for image in images}
        factors = {kind: self._factors(1.0 if kind else 255.0, width) for kind in kinds}
        for slot, image, (h, w) in zip(batch, images, sizes, strict=True):
            self._normalize_into(slot[:, :h, :w], image, *factors[image.is_floating_point()])
            if h < height:
                slot[:, h:] = 0
            if w < width:
                slot[:, :h, w:] = 0
        return ImageList(batch, sizes)

    def _factors(self, largest: float, width: int) -> tuple[Tensor, Tensor]:
        """Return scale and offset for values in 0..largest: ``(3, 1, 1)``, or ``(width * 3,)``."""
        scale, offset = 1 / self.std / largest, -self.mean / self.std
        if self._by_rows():
            return scale.flatten().repeat(width), offset.flatten().repeat(width)
        return scale, offset

    def _by_rows(self) -> bool:
        # Three values per pixel are too few for a CPU's vector instructions, so whole rows of
        # pixels are processed instead.
        return self.channels_last and self.mean.device.type == "cpu"

    def _normalize_into(self, slot: Tensor, image: Tensor, scale: Tensor, offset: Tensor) -> None:
        """``(3, h, w)`` of the batch := ``image * scale + offset``."""
        if slot.device.type != "cpu":  # one kernel, which converts uint8 on the way
            torch.addcmul(offset, image, scale, out=slot)
            return
        if self._by_rows():
            slot, image = (each.permute(1, 2, 0).flatten(1) for each in (slot, image))  # (h, w * 3)
            scale, offset = (each[: slot.shape[1]] for each in (scale, offset))
        slot.copy_(image)  # otherwise a CPU would first convert the whole image to a temporary
        torch.addcmul(offset, slot, scale, out=slot)


def padded(side: int) -> int:
    """Round a side up to a multiple of ``DIVISOR``.

    >>> padded(96), padded(97)
    (96, 128)
    """
    return -(-side // DIVISOR) * DIVISOR


def _size_of(image: Tensor) -> tuple[int, int]:
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"an image must be (3, height, width), not {tuple(image.shape)}")
    return image.shape[1], image.shape[2]
