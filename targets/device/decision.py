"""From the output of a model to its answer, as an application takes it; see `preprocess.py`."""

from typing import Callable, Dict  # noqa: UP035 (this file runs on Python 3.8)

import numpy as np


def argmax_over_axis_1(output: "np.ndarray") -> "np.ndarray":
    """The class of each sample or pixel: (n, C, ...) -> int64 (n, ...)."""
    classes: np.ndarray = output.argmax(axis=1)
    return classes


DECISIONS: Dict[str, Callable[["np.ndarray"], "np.ndarray"]] = {  # noqa: UP006
    "argmax over axis 1": argmax_over_axis_1
}
"""Every way that is known, in words."""
