"""From files and arrays to uint8 pixels of one form. Unlike `images.py` it keeps nothing.

How a picture becomes grey (1 channel) or RGB (3 channels): EXIF orientation is applied first;
transparent parts are laid over white; palettes and CMYK become RGB; 16-bit values are divided by
257, so that 65535 becomes 255; grey from RGB is ITU-R 601 luma. Float and 32-bit pictures are
refused, since nothing says which of their values is white. Then the picture is resized, bilinear
with antialiasing (PIL), when it has another size.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N"})
ALPHA_MODES = frozenset({"LA", "PA", "RGBA"})
CHUNK_BYTES = 4 << 20
"""About how many bytes of pixels are in memory at a time while a data set is read."""

S = TypeVar("S")
T = TypeVar("T")
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 lie on their side
_PIECE = 1 << 18
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Form:
    """Height, width and channels (1 grey, 3 RGB) that all images of a dataset have."""

    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.height, self.width, self.channels

    @property
    def rows_per_chunk(self) -> int:
        """How many images fit into CHUNK_BYTES, at least one per thread."""
        return max(_THREADS, CHUNK_BYTES // (self.height * self.width * self.channels))

    def fit(self, image: Image.Image) -> NDArray[np.uint8]:
        """Bring one picture into this form: uint8 (H, W, C). Raises ValueError on float pixels."""
        plain = _eight_bit(image).convert("L" if self.channels == 1 else "RGB")
        if plain.size != (self.width, self.height):
            plain = plain.resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(plain, np.uint8).reshape(self.shape)

    def fit_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The same for an array of pictures (n, h, w, c) with c = 1, 3 or 4: uint8 (n, H, W, C)."""
        if frames.shape[1:] == self.shape:
            return frames
        plain = frames[..., 0] if frames.shape[-1] == 1 else frames
        return np.stack([self.fit(Image.fromarray(frame)) for frame in plain])


class BadImage(Exception):
    """Why a file cannot be used, in words that follow its name."""


def decode(path: Path, form: Form) -> tuple[NDArray[np.uint8], int]:
    """Read a file whole: pixels uint8 (H, W, C), and the CRC-32 of its bytes.

    Raises BadImage.
    """

    def read(image: Image.Image) -> NDArray[np.uint8]:
        image.load()
        return form.fit(ImageOps.exif_transpose(image))

    data = content(path)
    return opened(BytesIO(data), read), zlib.crc32(data)


def measure(path: Path) -> tuple[int, int, int]:
    """Height, width and channels of an upright picture, from its header. Raises BadImage."""

    def read(image: Image.Image) -> tuple[int, int, int]:
        width, height = image.size
        if image.getexif().get(_ORIENTATION, 1) >= 5:
            width, height = height, width
        return height, width, 1 if image.mode in GREY_MODES else 3

    return opened(path, read)


def content(path: Path) -> bytes:
    """All bytes of a file. Raises BadImage when there are none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadImage("does not exist") from None
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error
    if not data:
        raise BadImage("is empty (0 bytes)")
    return data


def opened(
    source: Path | BytesIO,
    read: Callable[[Image.Image], T],
    formats: tuple[str, ...] = FORMATS,
    expected: str = "a JPEG, PNG, BMP or WebP image",
) -> T:
    """What `read` makes of a picture. Raises BadImage, whatever its decoder may raise."""
    try:
        with Image.open(source, formats=formats) as image:
            return read(image)
    except UnidentifiedImageError:
        raise BadImage(f"is not {expected}") from None
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        raise BadImage(str(error) or type(error).__name__) from error


def each(items: Sequence[S], read: Callable[[S], T]) -> list[T | BadImage]:
    """Apply `read` to all `items` in a few threads; what is wrong with one takes its place."""

    def attempt(item: S) -> T | BadImage:
        try:
            return read(item)
        except BadImage as bad:
            return bad

    # A picture of more than 90 million pixels is an attack or a mistake, in the whole process.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.init()  # PIL loads its decoders on first use, which is not safe among threads
    with ThreadPoolExecutor(_THREADS) as pool:  # a pool of its own: it survives no fork
        return list(pool.map(attempt, items))


class Histogram:
    """How often each of the 256 levels occurs in each channel: exact, whatever the chunks."""

    def __init__(self, channels: int) -> None:
        self._counts = np.zeros((channels, 256), np.int64)

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Count uint8 (n, H, W, C)."""
        for channel, counts in enumerate(self._counts):
            levels = pixels[..., channel].ravel()
            # In pieces, because bincount widens what it counts to 64 bits.
            for start in range(0, len(levels), _PIECE):
                counts += np.bincount(levels[start : start + _PIECE], minlength=256)

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, in units of 255 levels (0.0 to 1.0)."""
        levels = np.arange(256) / 255
        weights = self._counts / self._counts.sum(axis=1, keepdims=True)
        mean = weights @ levels
        std = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))
        return tuple(mean.tolist()), tuple(std.tolist())


def _eight_bit(image: Image.Image) -> Image.Image:
    """The picture with 8 bits per channel and nothing transparent."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.size and (wide.min() < 0 or wide.max() > 65535):
            raise ValueError("has 32-bit pixels; save it with 8 or 16 bits")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("has float pixels; save it with 8 or 16 bits")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        solid = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid)
    return image.convert("RGB") if image.mode == "P" else image
