"""From files to pixels: modes, orientation, sizes, faults and statistics."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.stages.pixels import BadImage, Form, Histogram, decode, each, measure

GREY, RGB = Form(2, 2, 1), Form(2, 2, 3)


def picture(mode: str, color: object) -> Image.Image:
    return Image.new(mode, (2, 2), color)


@pytest.mark.parametrize(
    ("image", "grey", "rgb"),
    [
        (picture("L", 100), 100, (100, 100, 100)),
        (picture("1", 1), 255, (255, 255, 255)),
        (picture("RGB", (255, 0, 0)), 76, (255, 0, 0)),  # 601 luma: 0.299 * 255
        (picture("RGBA", (10, 20, 30, 0)), 255, (255, 255, 255)),
        (picture("RGBA", (10, 20, 30, 255)), 18, (10, 20, 30)),
        (picture("LA", (50, 0)), 255, (255, 255, 255)),
        (picture("RGB", (200, 100, 50)).quantize(4), 124, (200, 100, 50)),
        (picture("CMYK", (0, 0, 0, 0)), 255, (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 65535, np.uint16)), 255, (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 257 * 9, np.uint16)), 9, (9, 9, 9)),
    ],
    ids=["L", "1", "RGB", "clear", "opaque", "LA", "P", "CMYK", "16-bit", "16-bit dark"],
)
def test_modes_become_grey_and_rgb(image, grey, rgb):
    """Every mode has one documented meaning in 8 bits."""
    assert GREY.fit(image).tolist() == [[[grey]] * 2] * 2
    assert RGB.fit(image).tolist() == [[list(rgb)] * 2] * 2


@pytest.mark.parametrize("array", [np.ones((2, 2), np.float32), np.full((2, 2), 70000, np.int32)])
def test_pixels_without_a_range_are_refused(array):
    """Float and 32-bit pictures do not say which value is white."""
    with pytest.raises(ValueError, match=r"float|32-bit"):
        GREY.fit(Image.fromarray(array))


def test_frames_and_pictures_agree():
    """An array of pictures is resized exactly as the pictures one by one."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    form = Form(4, 6, 1)

    one_by_one = [form.fit(Image.fromarray(frame)) for frame in frames]

    assert np.array_equal(form.fit_frames(frames), np.stack(one_by_one))
    assert form.fit_frames(frames).shape == (3, 4, 6, 1)


def test_resizing_averages():
    """Shrinking weighs all pixels that a new one covers: a fine checkerboard becomes grey."""
    board = (np.indices((32, 32)).sum(axis=0) % 2 * 255).astype(np.uint8)

    small = Form(4, 4, 1).fit(Image.fromarray(board))

    assert abs(small.astype(int) - 127).max() < 4


def test_orientation_is_applied(tmp_path: Path):
    """A picture on its side (EXIF orientation 6) is measured and decoded upright."""
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "side.png"
    Image.fromarray(pixels).save(path, exif=exif)

    upright, checksum = decode(path, Form(3, 2, 1))

    assert measure(path) == (3, 2, 1)
    assert np.array_equal(upright[..., 0], np.rot90(pixels, -1))
    assert checksum == zlib.crc32(path.read_bytes())


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_damaged_files_are_told_apart_from_good_ones(tmp_path: Path, suffix: str):
    """A truncated, an empty, a missing and a false file each have their reason, in order."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    good, cut, empty, text = (tmp_path / f"{n}.{suffix}" for n in ("good", "cut", "empty", "text"))
    Image.fromarray(noise).save(good)
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    empty.touch()
    text.write_text("not an image")
    missing = tmp_path / "missing"

    seen = each([cut, good, empty, missing, text], lambda path: decode(path, Form(40, 40, 3))[1])

    assert seen[1] == zlib.crc32(good.read_bytes())
    reasons = [str(fault) for fault in seen if isinstance(fault, BadImage)]
    assert len(reasons) == 4
    assert reasons[1:] == [
        "is empty (0 bytes)",
        "does not exist",
        "is not a JPEG, PNG, BMP or WebP image",
    ]


def test_decompression_bomb_is_refused(tmp_path: Path):
    """A small file that unpacks to more than 90 million pixels is an error, not a warning."""
    path = tmp_path / "bomb.png"
    Image.new("1", (10_000, 10_000)).save(path)

    (seen,) = each([path], lambda path: decode(path, GREY))

    assert isinstance(seen, BadImage)
    assert "decompression bomb" in str(seen)


def test_histogram_gives_mean_and_deviation_per_channel():
    """Counted in chunks, the moments are those NumPy computes over all pixels at once."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 5, 4, 3), dtype=np.uint8)
    histogram = Histogram(3)
    for chunk in np.split(pixels, [1, 4]):
        histogram.add(chunk)

    mean, std = histogram.moments()

    flat = pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, flat.std(axis=0), rtol=1e-12)
