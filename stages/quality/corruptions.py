"""What cameras and channels do to pictures: noise, blur, light, contrast, JPEG; never geometry.

The corruptions and their severities 1 to 3 are those of Hendrycks and Dietterich 2019
("Benchmarking neural network robustness to common corruptions and perturbations", ICLR): of
ImageNet-C from 64 pixels of the shorter side on, and of CIFAR-10-C, which are milder, below. As
pixels stay where they are, label maps stay true.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]
    Floats = NDArray[np.float64]
    Apply = Callable[[Picture, float, np.random.Generator], Picture]
else:
    from kdpipe.targets.lazy import np

LARGE = 64
"""Pixels of the shorter side from which on pictures are corrupted as ImageNet is."""


@dataclass(frozen=True)
class Corruption:
    """`apply` takes a picture uint8 (H, W, C), C = 1 or 3, a strength and a generator.

    `large` and `small`: strengths of severities 1 to 3 for large and small pictures.
    """

    apply: Apply
    large: tuple[float, float, float]
    small: tuple[float, float, float]

    def strength(self, severity: int, height: int, width: int) -> float:
        """Of severity 1, 2 or 3 for pictures of this size."""
        return (self.large if min(height, width) >= LARGE else self.small)[severity - 1]


def corrupt(
    images: NDArray[np.uint8], kind: str, severity: int, rows: NDArray[np.int64], seed: int = 0
) -> NDArray[np.uint8]:
    """Pictures uint8 (n, H, W, C), corrupted each for itself.

    `rows` (n,): the numbers of these samples. A sample's pixels depend on its number, kind,
    severity and `seed` alone, not on its batch, so that two models see the same ones.
    """
    corruption = CORRUPTIONS[kind]
    strength = corruption.strength(severity, *images.shape[1:3])
    name = zlib.crc32(kind.encode())
    return np.stack(
        [
            corruption.apply(image, strength, np.random.default_rng((seed, name, severity, row)))
            for image, row in zip(images, rows.tolist(), strict=True)
        ]
    )


def _noise(image: Picture, deviation: float, rng: np.random.Generator) -> Picture:
    """Gaussian, independent for every pixel and channel; its deviation as a share of white."""
    return _pixels(image / 255 + rng.normal(scale=deviation, size=image.shape))


def _blur(image: Picture, sigma: float, rng: np.random.Generator) -> Picture:
    """Gaussian, sigma in pixels; beyond the border the last pixel goes on."""
    from scipy.ndimage import gaussian_filter

    return _pixels(gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest"))


def _brightness(image: Picture, more: float, rng: np.random.Generator) -> Picture:
    """More value in HSV, the largest of the channels; hue and saturation stay. Black turns grey."""
    plain = image / 255
    value = plain.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + more, 1)
    ratio = brighter / np.where(value > 0, value, 1)
    return _pixels(np.where(value > 0, plain * ratio, brighter))


def _contrast(image: Picture, share: float, rng: np.random.Generator) -> Picture:
    """Only a share of the distance from the mean of each channel is left."""
    plain = image / 255
    mean = plain.mean(axis=(0, 1))
    return _pixels((plain - mean) * share + mean)


def _jpeg(image: Picture, quality: float, rng: np.random.Generator) -> Picture:
    """Written and read again by Pillow with its default chroma subsampling."""
    from PIL import Image

    grey = image.shape[-1] == 1
    file = BytesIO()
    Image.fromarray(image[..., 0] if grey else image).save(file, "JPEG", quality=int(quality))
    with Image.open(file) as read:
        return np.asarray(read, np.uint8).reshape(image.shape)


def _pixels(image: Floats) -> Picture:
    pixels: Picture = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return pixels


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(_noise, (0.08, 0.12, 0.18), (0.04, 0.06, 0.08)),
    "gaussian_blur": Corruption(_blur, (1, 2, 3), (0.4, 0.6, 0.7)),
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3), (0.05, 0.1, 0.15)),
    "contrast": Corruption(_contrast, (0.4, 0.3, 0.2), (0.75, 0.5, 0.4)),
    "jpeg": Corruption(_jpeg, (25, 18, 15), (80, 65, 58)),
}
