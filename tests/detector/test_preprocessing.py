"""Preprocessing: torchvision's normalization and padding, for any kind of image."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detector.preprocessing import IMAGE_MEAN, IMAGE_STD, Preprocessing


def random_images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes
    ]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sizes", [((33, 64),), ((40, 70), (64, 20)), ((32, 32), (32, 32), (1, 1))])
def test_the_batch_equals_torchvisions(
    sizes: tuple[tuple[int, int], ...], channels_last: bool
) -> None:
    images = random_images(*sizes)
    peer = GeneralizedRCNNTransform(1, 1, list(IMAGE_MEAN), list(IMAGE_STD))
    expected = peer.batch_images([peer.normalize(image.float() / 255) for image in images])
    batch = Preprocessing(channels_last=channels_last)(images)
    torch.testing.assert_close(batch.tensors, expected, rtol=0, atol=1e-6)
    assert batch.image_sizes == list(sizes)
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.tensors.is_contiguous(memory_format=order)


def test_float_images_in_0_to_1_give_the_same_as_uint8() -> None:
    images = random_images((20, 30), (10, 50))
    batch = Preprocessing()(images)
    same = Preprocessing()([image.float() / 255 for image in images])
    torch.testing.assert_close(same.tensors, batch.tensors, rtol=0, atol=1e-6)


def test_padding_is_zero_and_the_memory_order_of_an_image_does_not_matter() -> None:
    image = random_images((20, 30))[0]
    batch = Preprocessing()([image]).tensors
    assert batch.shape == (1, 3, 32, 32)
    assert not batch[:, :, 20:].any()
    assert not batch[:, :, :, 30:].any()
    interleaved = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(Preprocessing()([interleaved]).tensors, batch)


def test_it_has_no_entries_in_the_state_dict() -> None:
    assert not Preprocessing().state_dict()


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8), (8, 8, 3), (1, 3, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="height, width"):
        Preprocessing()([torch.zeros(shape)])
