"""Mask files: which pixel values are which class numbers, and which files are refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.stages.masks import decode_mask, fit_maps
from kdpipe.stages.pixels import BadImage, Form

NUMBERS = np.array([[0, 1, 2], [3, 2, 1]], np.uint8)
FORM = Form(2, 3, 1)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 2x3 pixels."""
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(path)
    return path


def grey_png(path: Path, values: np.ndarray, depth: int) -> None:
    """A grey PNG of 1, 2, 4 or 8 bits per pixel, as the specification (ISO/IEC 15948) has it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    bits = np.unpackbits(values[..., None], axis=2)[..., 8 - depth :].reshape(height, -1)
    lines = b"".join(b"\0" + np.packbits(line).tobytes() for line in bits)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def test_palette_indices_are_class_numbers(image: Path, tmp_path: Path):
    """The colours do not matter, nor does a transparent index."""
    picture = Image.fromarray(NUMBERS, "P")
    picture.putpalette([255, 255, 255] * 4)
    picture.save(tmp_path / "m.png", transparency=0)

    assert np.array_equal(decode_mask(tmp_path / "m.png", image, FORM), NUMBERS)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_values_are_class_numbers(image: Path, tmp_path: Path, depth: int):
    """As they are in the file: grey of few bits is not spread over 0..255."""
    values = np.minimum(NUMBERS, 2**depth - 1).astype(np.uint8)
    grey_png(tmp_path / "m.png", values, depth)

    assert np.array_equal(decode_mask(tmp_path / "m.png", image, FORM), values)


def test_sixteen_bits_hold_what_fits_eight(image: Path, tmp_path: Path):
    """Labels up to 255 are read, and are not scaled down; larger ones are refused."""
    Image.fromarray(NUMBERS.astype(np.uint16) * 85).save(tmp_path / "fits.png")
    Image.fromarray(NUMBERS.astype(np.uint16) * 100).save(tmp_path / "large.png")

    assert np.array_equal(decode_mask(tmp_path / "fits.png", image, FORM), NUMBERS * 85)
    with pytest.raises(BadImage, match="holds the label 300; labels are at most 255"):
        decode_mask(tmp_path / "large.png", image, FORM)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_pictures_of_colours_are_refused(image: Path, tmp_path: Path, mode: str):
    """A colour is no class number; the message says what to save."""
    Image.fromarray(NUMBERS).convert(mode).save(tmp_path / "m.png")

    with pytest.raises(BadImage, match=f"mode {mode}, not of class numbers; .* PNG of mode P or L"):
        decode_mask(tmp_path / "m.png", image, FORM)


def test_lossy_masks_are_refused(image: Path, tmp_path: Path):
    """JPEG changes labels, whatever the file is called."""
    Image.fromarray(NUMBERS).save(tmp_path / "m.png", "JPEG")

    with pytest.raises(BadImage, match="is not a PNG file; only that keeps every label"):
        decode_mask(tmp_path / "m.png", image, FORM)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", None])
def test_damaged_and_missing_masks_are_bad(image: Path, tmp_path: Path, content: bytes | None):
    """Whatever a decoder raises becomes words about the file."""
    if content is not None:
        (tmp_path / "m.png").write_bytes(content)

    with pytest.raises(BadImage, match=r"is empty|is not a PNG|does not exist"):
        decode_mask(tmp_path / "m.png", image, FORM)


def test_a_mask_has_the_size_of_its_image(image: Path, tmp_path: Path):
    """Also where both would be resized; both sizes are told."""
    Image.fromarray(NUMBERS.T.copy()).save(tmp_path / "m.png")

    with pytest.raises(BadImage, match="is 3x2, its image 2x3"):
        decode_mask(tmp_path / "m.png", image, Form(8, 8, 1))


def test_masks_are_turned_upright_as_images_are(tmp_path: Path):
    """Orientation 6 says that the file shows the scene lying on its left side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(NUMBERS).save(tmp_path / "m.png", exif=exif)
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "i.jpg", exif=exif)

    upright = decode_mask(tmp_path / "m.png", tmp_path / "i.jpg", Form(3, 2, 1))

    assert np.array_equal(upright, np.rot90(NUMBERS, -1))


def test_resizing_invents_no_class():
    """Nearest neighbour: pixel y of H comes from row floor((y + 1/2) h / H)."""
    maps = np.random.default_rng(0).choice([0, 7, 255], (3, 12, 9)).astype(np.uint8)

    for height, width in ((5, 4), (24, 27), (12, 3)):
        rows = ((np.arange(height) + 0.5) * 12 / height).astype(int)
        columns = ((np.arange(width) + 0.5) * 9 / width).astype(int)
        expected = maps[:, rows][:, :, columns]
        assert np.array_equal(fit_maps(maps, Form(height, width, 3)), expected)
