"""Further views of the samples of a training batch, made by the loader for methods that ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdpipe.stages.augment import Augment
from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdpipe.stages.dataset import Split
else:
    from kdpipe.targets.lazy import np


@dataclass(frozen=True)
class Draw:
    """One training batch in the making: rows of `split`, and their pixels before normalisation.

    `pixels` is the batch as augmented for everyone, uint8 (n, H, W, C); `rng` is the step's own.
    """

    split: Split
    indices: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    augment: Augment
    rng: np.random.Generator


class View(ABC):
    """A rule for another view of a batch."""

    @abstractmethod
    def make(self, draw: Draw) -> NDArray[np.uint8]:
        """Pixels uint8 (m, H, W, C); m may differ from the batch's n."""


class Partner(View):
    """Another sample with the same label, each time another one; the sample itself if it is alone.

    (Yun et al. 2020, arXiv:2003.13964.) Needs one label per sample.
    """

    def make(self, draw: Draw) -> NDArray[np.uint8]:
        """One partner for each sample of the batch, augmented for itself."""
        if len(draw.split.labels.shape) > 1:
            raise UsageError(
                "samples with label maps have no partner of the same class",
                found=f"labels of shape {draw.split.labels.shape}",
                fix="use a method without this view, see `kdpipe methods`",
            )
        labels = np.asarray(draw.split.labels)
        partners = np.array([self._one(draw, labels, i) for i in draw.indices])
        return draw.augment.apply(draw.split.images[partners], draw.rng)

    @staticmethod
    def _one(draw: Draw, labels: NDArray[np.generic], index: int) -> int:
        same = np.flatnonzero(labels == labels[index])
        others = same[same != index]
        return int(draw.rng.choice(others)) if others.size else int(index)


class Strong(View):
    """The same samples under stronger changes: brightness and contrast by up to 40 %, and a cutout.

    The cutout is a grey square of half the side (DeVries & Taylor 2017, arXiv:1708.04552).
    """

    def make(self, draw: Draw) -> NDArray[np.uint8]:
        """One strong view for each sample, made from its augmented pixels."""
        n, height, width, _ = draw.pixels.shape
        gain, shift = draw.rng.uniform(-0.4, 0.4, size=(2, n, 1, 1, 1))
        changed = (draw.pixels - 127.5) * (1 + gain) + 127.5 * (1 + shift)
        strong: NDArray[np.uint8] = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
        corners = draw.rng.integers(0, (height, width), size=(n, 2))
        for image, (top, left) in zip(strong, corners, strict=True):
            image[top : top + height // 2, left : left + width // 2] = 127
        return strong


class Rotated(View):
    """Every sample turned by 90, 180 and 270 degrees: 3n images, the turn being the slow axis.

    (Gidaris et al. 2018, arXiv:1803.07728.) Needs square images.
    """

    def make(self, draw: Draw) -> NDArray[np.uint8]:
        """All samples at 90, then all at 180, then all at 270 degrees."""
        _, height, width, _ = draw.pixels.shape
        if height != width:
            raise UsageError(
                "only square images can be turned by 90 degrees",
                found=f"{height}x{width} pixels",
                fix="set data.image_size to one number, or use another method",
            )
        turned = [np.rot90(draw.pixels, k, axes=(1, 2)) for k in (1, 2, 3)]
        return np.ascontiguousarray(np.concatenate(turned))
