from __future__ import annotations

import warnings
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from data.errors import InputError
from data.images import (
    DamagedImageError,
    read_image,
    resize_image,
    resize_masks,
    resized_size,
)

NO_LIMIT = 2**31
NUCLEI = Path(__file__).parents[2] / "../shared/data/dsb2018_nuclei"


def smooth_picture(height: int = 40, width: int = 56) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    channels = (rows * 255 // height, columns * 255 // width, (rows + columns) * 2 % 256)
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def written(folder: Path, content: bytes) -> Path:
    path = folder / "picture"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_every_format_reads_as_pillow_reads_it(tmp_path: Path, kind: str) -> None:
    content = encoded(smooth_picture(), kind)
    expected = np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int)
    image = read_image(written(tmp_path, content), (40, 56), NO_LIMIT)
    assert image.dtype == np.uint8
    assert image.shape == (40, 56, 3)
    assert np.abs(image - expected).max() <= 2


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG")]
)
def test_every_color_mode_becomes_rgb(tmp_path: Path, mode: str, kind: str) -> None:
    content = encoded(smooth_picture().convert(mode), kind)
    expected = np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int)
    image = read_image(written(tmp_path, content), (40, 56), NO_LIMIT)
    assert image.shape == (40, 56, 3)
    assert np.abs(image - expected).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_not_blended(tmp_path: Path, mode: str, kind: str) -> None:
    picture = smooth_picture().convert(mode)
    picture.putalpha(Image.new("L", picture.size, 40))
    content = encoded(picture, kind)
    image = read_image(written(tmp_path, content), None, NO_LIMIT)
    np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))
    for kept in (0.1, 0.9):
        with pytest.raises(DamagedImageError, match="replace the file"):
            read_image(written(tmp_path, content[: int(len(content) * kept)]), None, NO_LIMIT)


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_tiff_of_more_than_16_bits_is_not_called_damaged(
    tmp_path: Path, kind: type[np.generic], channels: int
) -> None:
    pixels = np.asarray(smooth_picture())[:, :, :channels].astype(kind)
    path = written(tmp_path, cv2.imencode(".tiff", pixels)[1].tobytes())
    with pytest.raises(DamagedImageError, match="save it as 8 or 16 bit") as raised:
        read_image(path, None, NO_LIMIT)
    assert "header is damaged" not in str(raised.value)


@pytest.mark.parametrize("large", ["text", "profile"])
def test_large_texts_and_profiles_in_a_png_do_no_harm(tmp_path: Path, large: str) -> None:
    texts = PngInfo()
    texts.add_text("notes", "x" * 3_000_000, zip=True)
    exif = Image.Exif()
    exif[0x0112] = 3
    more = {"pnginfo": texts} if large == "text" else {"icc_profile": b"x" * 3_000_000}
    path = written(tmp_path, encoded(smooth_picture(), "PNG", exif=exif, **more))
    expected = np.asarray(smooth_picture())[::-1, ::-1]
    np.testing.assert_array_equal(read_image(path, (40, 56), NO_LIMIT), expected)


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_lose_their_lower_eight(tmp_path: Path, extension: str, channels: int) -> None:
    shallow = np.asarray(smooth_picture())[:, :, :channels]
    deep = shallow.astype(np.uint16)[:, :, ::-1] * 256 + 77
    if channels == 4:
        deep = np.dstack([deep, np.full(deep.shape[:2], 9000, np.uint16)])
    path = written(tmp_path, cv2.imencode(extension, deep)[1].tobytes())
    image = read_image(path, None, NO_LIMIT).astype(int)
    assert np.abs(image - np.broadcast_to(shallow, (40, 56, 3))).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(tmp_path: Path, kind: str) -> None:
    first, second = smooth_picture().convert("P"), ImageOps.flip(smooth_picture()).convert("P")
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=[second], **options)
    image = read_image(written(tmp_path, content), (40, 56), NO_LIMIT)
    np.testing.assert_array_equal(image, np.asarray(Image.open(BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_rotation_is_applied_as_viewers_do(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(smooth_picture(), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB")
    image = read_image(written(tmp_path, content), upright.size[::-1], NO_LIMIT)
    assert np.abs(image - np.asarray(upright).astype(int)).max() <= 2


def test_the_exif_rotation_is_left_out_where_the_annotation_was_made_without_it(
    tmp_path: Path,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = written(tmp_path, encoded(smooth_picture(), "PNG", exif=exif))
    unrotated = read_image(path, (40, 56), NO_LIMIT)
    np.testing.assert_array_equal(unrotated, np.asarray(smooth_picture()))
    assert read_image(path, (56, 40), NO_LIMIT).shape == (56, 40, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_ignored_exif_orientation_leaves_the_stored_pixels(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path, encoded(smooth_picture(), "PNG", exif=exif))
    for size in ((40, 56), None):
        stored = read_image(path, size, NO_LIMIT, ignore_exif=True)
        np.testing.assert_array_equal(stored, np.asarray(smooth_picture()))
    cure = "set data.exif: apply" if orientation >= 5 else "correct the annotation"
    with pytest.raises(InputError, match=f"is 56x40 .* says 40x56; .*{cure}"):
        read_image(path, (56, 40), NO_LIMIT, ignore_exif=True)


def test_a_picture_of_another_size_than_annotated_is_an_error_with_both_sizes(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, encoded(smooth_picture(), "JPEG"))
    with pytest.raises(InputError, match=r"picture: the image is 56x40 .* says 40x41") as raised:
        read_image(path, (41, 40), NO_LIMIT)
    assert not isinstance(raised.value, DamagedImageError)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
def test_a_picture_that_is_cut_off_is_damaged(tmp_path: Path, kind: str, kept: float) -> None:
    content = encoded(smooth_picture(200, 300), kind)
    path = written(tmp_path, content[: int(len(content) * kept)])
    with pytest.raises(DamagedImageError, match=r"picture: .*replace the file"):
        read_image(path, (200, 300), NO_LIMIT)


@pytest.mark.parametrize(("kind", "lost"), [("JPEG", 1), ("JPEG", 2), ("PNG", 1), ("PNG", 12)])
def test_the_very_last_bytes_may_not_be_missing(tmp_path: Path, kind: str, lost: int) -> None:
    path = written(tmp_path, encoded(smooth_picture(), kind)[:-lost])
    with pytest.raises(DamagedImageError, match="truncated"):
        read_image(path, (40, 56), NO_LIMIT)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_second_half_was_never_written_is_damaged(
    tmp_path: Path, progressive: bool
) -> None:
    content = encoded(smooth_picture(200, 300), "JPEG", progressive=progressive)
    path = written(tmp_path, content[: len(content) // 2].ljust(len(content), b"\0"))
    with pytest.raises(DamagedImageError, match="truncated"):
        read_image(path, (200, 300), NO_LIMIT)


@pytest.mark.parametrize(("compression", "noticed"), [("tiff_lzw", 20), ("tiff_adobe_deflate", 1)])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_compressed_tiffs_read_as_others_and_are_damaged_where_they_cannot_be_unpacked(
    tmp_path: Path, mode: str, compression: str, noticed: int
) -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 16, (200, 300, 3), dtype=np.uint8)
    picture = Image.fromarray(np.asarray(smooth_picture(200, 300)) ^ noise).convert(mode)
    whole = read_image(written(tmp_path, encoded(picture, "TIFF")), None, NO_LIMIT)
    content = encoded(picture, "TIFF", compression=compression)
    packed = read_image(written(tmp_path, content), (200, 300), NO_LIMIT)
    np.testing.assert_array_equal(packed, whole)
    damaged = 0
    for start in random.integers(8, len(content) - 2000, 20).tolist():
        changed = content[:start] + random.bytes(512) + content[start + 512 :]
        try:
            read_image(written(tmp_path, changed), (200, 300), NO_LIMIT)
        except DamagedImageError:
            damaged += 1
    assert damaged >= noticed  # what deflate unpacks to enough pixels passes for whole


def test_the_end_marker_of_an_embedded_thumbnail_does_not_count(tmp_path: Path) -> None:
    content = encoded(smooth_picture(), "JPEG")
    thumbnail = encoded(smooth_picture(8, 8), "JPEG")
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = content[:2] + segment + content[2:]
    assert read_image(written(tmp_path, whole), (40, 56), NO_LIMIT).shape == (40, 56, 3)
    with pytest.raises(DamagedImageError, match="truncated"):
        read_image(written(tmp_path, whole[:-20]), (40, 56), NO_LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_behind_the_end_do_no_harm(tmp_path: Path, kind: str) -> None:
    content = encoded(smooth_picture(), kind)
    plain = read_image(written(tmp_path, content), (40, 56), NO_LIMIT)
    longer = read_image(written(tmp_path, content + b"appended by a phone" * 9), None, NO_LIMIT)
    np.testing.assert_array_equal(plain, longer)


@pytest.mark.parametrize("behind", [b"", b"appended by a phone"])
def test_fill_bytes_before_a_marker_do_no_harm(tmp_path: Path, behind: bytes) -> None:
    content = encoded(smooth_picture(), "JPEG")
    filled = content[:2] + b"\xff" * 5 + content[2:]
    image = read_image(written(tmp_path, filled + behind), None, NO_LIMIT)
    np.testing.assert_array_equal(image, read_image(written(tmp_path, content), None, NO_LIMIT))
    with pytest.raises(DamagedImageError, match="truncated"):
        read_image(written(tmp_path, filled[:-20]), None, NO_LIMIT)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>not found</html>", "is not a JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n(ls) %pipe%", "is not a JPEG"),
        (b"\xff\xd8\xff", "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "damaged"),
        (b"BM" + bytes(60), "damaged"),
        (b"RIFF" + bytes(60), "damaged"),
        (b"II*\0" + b"\xff" * 60, "damaged"),
    ],
)
def test_what_is_no_image_is_named_with_a_cure(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(DamagedImageError, match=complaint) as raised:
        read_image(path, None, NO_LIMIT)
    assert str(path) in str(raised.value)
    assert "data.on_damaged: skip" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read \(No such file"):
        read_image(tmp_path / "gone.jpg", None, NO_LIMIT)


def test_an_image_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    bomb = bytearray(encoded(smooth_picture(), "PNG"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # 10 GB of pixels, says the header
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"60000x60000 .* data\.max_image_pixels=200000000"):
            read_image(written(tmp_path, bytes(bomb)), None, 200_000_000)


def test_a_flipped_byte_never_raises_anything_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"):
        content = encoded(smooth_picture(), kind)
        for _ in range(60):
            bad = bytearray(content)
            for place in random.integers(len(bad), size=3):
                bad[place] = random.integers(256)
            path = written(tmp_path, bytes(bad))
            try:
                assert read_image(path, None, 10**6).dtype == np.uint8
            except InputError as error:
                assert str(path) in str(error)  # noqa: PT017


@pytest.mark.skipif(not NUCLEI.is_dir(), reason="needs the shared data")
def test_real_rgba_pictures_read_as_rgb() -> None:
    for path in sorted(NUCLEI.glob("val/*.png"))[:5]:
        picture = Image.open(path)
        assert picture.mode == "RGBA"
        image = read_image(path, picture.size[::-1], NO_LIMIT)
        np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))


def test_the_short_side_is_reached_unless_the_long_side_would_exceed_its_bound() -> None:
    random = np.random.default_rng(0)
    for height, width in random.integers(1, 5000, (500, 2)).tolist():
        new_height, new_width = resized_size((height, width), (600, 1000))
        short, long = sorted((new_height, new_width))
        assert short == 600 or long == 1000
        assert short <= 600
        assert long <= 1000
        exact = new_width * height / width if long == new_width else new_height * width / height
        assert abs(exact - short) <= 0.5 + 1e-9 or short == 1


def test_sizes_without_rounding_equal_torchvisions() -> None:
    torch = pytest.importorskip("torch")
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    transform = GeneralizedRCNNTransform(600, 1000, [0.0] * 3, [1.0] * 3)
    for size in ((480, 640), (375, 500), (500, 375), (1200, 2000), (300, 900), (600, 600)):
        resized, _ = transform.resize(torch.zeros(3, *size))
        assert resized_size(size, (600, 1000)) == tuple(resized.shape[1:])


def test_extreme_sizes_keep_at_least_a_pixel() -> None:
    assert resized_size((1, 1), (600, 1000)) == (600, 600)
    assert resized_size((10_000, 30), (600, 1000)) == (1000, 3)
    assert resized_size((100_000, 1), (600, 1000)) == (1000, 1)


def test_shrinking_far_averages_all_pixels() -> None:
    stripes = np.zeros((80, 80, 3), np.uint8)
    stripes[::2] = 200
    assert (resize_image(stripes, (10, 10)) == 100).all()
    assert (resize_image(stripes, (40, 40)) == 100).all()
    assert resize_image(stripes, (80, 80)) is stripes


def test_masks_stay_binary_and_keep_their_place() -> None:
    masks = np.zeros((2, 20, 30), np.uint8)
    masks[0, 5:10, 6:18] = 1
    larger = resize_masks(masks, (40, 90))
    expected = np.zeros((2, 40, 90), np.uint8)
    expected[0, 10:20, 18:54] = 1
    np.testing.assert_array_equal(larger, expected)
    assert resize_masks(masks[:0], (40, 90)).shape == (0, 40, 90)


def test_an_object_between_the_centers_of_the_pixels_keeps_one_of_them() -> None:
    masks = np.zeros((3, 600, 600), np.uint8)
    masks[0, 100:103, 101:104] = 1
    masks[1, 200:204, 203:207] = 1
    smaller = resize_masks(masks, (100, 100))
    assert [np.argwhere(mask).tolist() for mask in smaller] == [[[16, 17]], [[33, 34]], []]
