"""The one preprocessing used in training, calibration, measurement and on the device."""

import json
from typing import Any, Dict, Sequence  # noqa: UP035 (this file runs on Python 3.8)

import numpy as np


class Preprocess:
    """uint8 pixels (n, H, W, C) -> normalised float32 (n, C, H, W): (x / 255 - mean) / std."""

    def __init__(self, height: int, width: int, mean: Sequence[float], std: Sequence[float]):
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"mean and std must pair up and std be positive: {mean}, {std}")
        self.height = int(height)
        self.width = int(width)
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)

    @property
    def channels(self) -> int:
        """Number of image channels, C."""
        return len(self.mean)

    def __call__(self, pixels: "np.ndarray") -> "np.ndarray":
        """Normalise one batch; raises ValueError when the pixels are not uint8 (n, H, W, C)."""
        expected = (self.height, self.width, self.channels)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != expected:
            raise ValueError(
                "expected uint8 pixels of shape (n, {}, {}, {}), got {} {}".format(
                    *expected, pixels.dtype, pixels.shape
                )
            )
        scale = (1.0 / (255.0 * np.asarray(self.std))).astype(np.float32)
        shift = (np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
        return np.ascontiguousarray((pixels * scale - shift).transpose(0, 3, 1, 2))

    def to_dict(self) -> Dict[str, Any]:  # noqa: UP006
        """Plain values for JSON."""
        return {
            "height": self.height,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: Dict[str, Any]) -> "Preprocess":  # noqa: UP006
        """The inverse of `to_dict`."""
        return cls(values["height"], values["width"], values["mean"], values["std"])

    @classmethod
    def from_json(cls, text: str) -> "Preprocess":
        """Read what `json.dumps(to_dict())` wrote."""
        return cls.from_dict(json.loads(text))
