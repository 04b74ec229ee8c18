"""Random changes to training batches; unlike preprocessing they never reach eval or the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np


class Augment(BaseModel):
    """Shift and flip, applied alike to what the teacher and the student train on."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    shift: NonNegativeInt = Field(
        0, description="pixels up, down, left or right; zeros come in, and no label in label maps"
    )
    flip: bool = Field(False, description="mirror left to right, every second image on average")

    def apply(
        self, batch: NDArray[np.uint8], rng: np.random.Generator, fill: int = 0
    ) -> NDArray[np.uint8]:
        """Augment uint8 (n, H, W, C) into a new array of that shape, each sample by itself.

        `fill` is the value that a shift brings in. The same state of `rng` changes any n samples
        alike, whatever their size: images, paired pictures and label maps. The batch itself is
        left as it is; it is returned as it came when there is nothing to do.
        """
        if self.shift:
            batch = _shifted(batch, self.shift, rng, fill)
        if self.flip:
            mirrored = rng.random(len(batch)) < 0.5
            batch = np.where(mirrored[:, None, None, None], batch[:, :, ::-1], batch)
        return batch


def _shifted(
    batch: NDArray[np.uint8], pixels: int, rng: np.random.Generator, fill: int
) -> NDArray[np.uint8]:
    """Crop each image at a random place out of its padded self (He et al. 2016, 4.2)."""
    n, height, width, _ = batch.shape
    y, x = rng.integers(0, 2 * pixels + 1, size=(2, n))
    around = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    padded = np.pad(batch, around, constant_values=fill)
    # A view of every crop, (n, 2p+1, 2p+1, C, H, W); only the chosen ones are copied.
    crops = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    chosen: NDArray[np.uint8] = crops[np.arange(n), y, x].transpose(0, 2, 3, 1)
    return np.ascontiguousarray(chosen)
