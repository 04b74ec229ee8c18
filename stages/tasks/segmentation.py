"""Semantic segmentation: one class index for every pixel; `classification.py` has one per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kdpipe.stages.tasks.base import Outcome, Task
from kdpipe.targets.errors import DataError, UsageError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from kdpipe.stages.images import Labels
    from kdpipe.stages.quality.compared import Compared
else:
    from kdpipe.targets.lazy import np


class Segmentation(Task):
    """One of C classes per pixel; outputs are logits (N, C, h, w), labels are maps (N, H, W).

    Outputs of another resolution than the labels are brought to it bilinearly
    (`align_corners=False`), for the loss and before they are judged: a network that ends at a
    stride of 4 is scored on every pixel all the same. Pixels labelled `ignore_index` count nowhere,
    and where that is one of the class numbers, the class has no IoU.
    """

    metric: ClassVar[str] = "miou"
    summary: ClassVar[str] = "one class per pixel; metric: miou, the mean IoU of each image"
    dense: ClassVar[bool] = True

    kind: Literal["segmentation"] = "segmentation"
    ignore_index: int | None = Field(
        255, ge=0, le=255, description="label of pixels that do not count; null: all count"
    )

    @property
    def ignored(self) -> int | None:
        """`ignore_index`."""
        return self.ignore_index

    def outputs(self, classes: int) -> int:
        """One map of logits per class."""
        return classes

    def check_labels(self, labels: NDArray[np.generic], classes: int, split: str) -> None:
        """Raise DataError unless these are maps (n, H, W) of classes, each with a labelled pixel.

        An image without any could not be scored, and in training it would only take up room.
        """
        if labels.ndim != 3 or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"the labels of {split} are not label maps",
                found=f"{labels.dtype} of shape {labels.shape}",
                fix="give a mask (H, W) of class numbers per image, or set `task: classification`",
            )
        for number, image in enumerate(labels):
            where = f"image {number}: " if len(labels) > 1 else ""
            values = np.unique(image)
            known = values[values != self.ignore_index] if self.ignore_index is not None else values
            bad = known[(known < 0) | (known >= classes)]
            if bad.size:
                raise DataError(
                    f"labels of {split} are out of range 0..{classes - 1}",
                    found=f"{where}{listing([str(value) for value in bad])}",
                    fix="correct the masks, set data.classes to the right number,"
                    " or name the value that does not count: task.ignore_index",
                )
            if not known.size:
                raise DataError(
                    f"no pixel is labelled in {split}, so nothing can be said of it",
                    found=f"{where}all {image.size} pixels are {self.ignore_index}",
                    fix="label some of it, or leave the image out",
                )

    def check_outputs(self, outputs: tuple[int, ...], image: tuple[int, int]) -> None:
        """Raise UsageError unless `outputs` are maps (N, C, h, w)."""
        if len(outputs) != 4:
            raise UsageError(
                "segmentation needs a network that gives logits for every pixel, (N, C, h, w)",
                found=f"outputs of shape {outputs} for images of {image[0]}x{image[1]}",
                fix="use `model: unet`, or a network of yours that returns maps",
            )

    def loss(
        self,
        outputs: Tensor,
        labels: Tensor,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Cross entropy of each pixel, the mean over all pixels of the batch that count.

        With `class_weights` (C,) it is the weighted mean, `sum_i w_yi l_i / sum_i w_yi`. A batch
        in which no pixel counts gives 0, with a gradient of zeros.
        """
        import torch
        from torch.nn import functional as F

        logits, y = _resized(outputs.float(), labels.shape[1:]), labels.long()
        counts = torch.ones_like(y, dtype=torch.bool)
        if self.ignore_index is not None:
            counts = y != self.ignore_index
        y = torch.where(counts, y, _NOT_A_CLASS)
        total = F.cross_entropy(
            logits,
            y,
            weight=class_weights,
            label_smoothing=label_smoothing,
            ignore_index=_NOT_A_CLASS,
            reduction="sum",
        )
        weights = counts.float() if class_weights is None else class_weights[y.clamp(min=0)]
        return total / torch.where(counts, weights, 0.0).sum().clamp(min=1e-12)

    def outcome(self, outputs: NDArray[np.float32], labels: NDArray[np.generic]) -> Outcome:
        """The highest logit of each pixel wins; the score of an image is its mean IoU.

        The mean is over the classes that the image has, in its labels or in the prediction, among
        the pixels that count (Csurka, Larlus, Perronnin 2013, "What is a good evaluation measure
        for semantic segmentation?", BMVC): a score per image is what two networks can be paired
        on. Without any pixel that counts it is 1. Predictions are uint8 (N, H, W), or uint16 from
        256 classes on; a pixel with a logit that is not finite has no class, the type's largest
        number, and is wrong.
        """
        logits = _resized_array(outputs, labels.shape[1:])
        classes = logits.shape[1]
        prediction = logits.argmax(axis=1).astype(np.uint8 if classes < 256 else np.uint16)
        prediction[~np.isfinite(logits).all(axis=1)] = _no_class(prediction)
        scores = [
            _mean(self._ious(self._confusion(p, y, classes)))
            for p, y in zip(prediction, labels, strict=True)
        ]
        return Outcome(np.array(scores, dtype=np.float32), prediction)

    def agreement(self, a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.float32]:
        """The share of all pixels that both models give the same class; no class never agrees."""
        shares = [
            (np.equal(one, other) & np.not_equal(one, _no_class(a))).mean()
            for one, other in zip(a, b, strict=True)
        ]
        return np.array(shares, dtype=np.float32)

    def details(
        self,
        prediction: NDArray[np.generic],
        labels: Labels,
        classes: Sequence[str],
    ) -> Mapping[str, float]:
        """What is usual to report beside `miou`, over all pixels of the split together.

        `dataset_miou` (the mean of the classes' IoU, as PASCAL VOC and Cityscapes define it),
        `pixel_accuracy`, and `iou/<class>` for each class that occurs.
        """
        total = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
        for row, decided in enumerate(prediction):  # one by one: counting takes 8 bytes per pixel
            total += self._confusion(decided, labels[row], len(classes))
        ious = self._ious(total)
        named = zip(classes, ious, strict=True)
        return {
            "dataset_miou": _mean(ious),
            "pixel_accuracy": float(np.trace(total) / total.sum()),
            **{f"iou/{name}": float(iou) for name, iou in named if np.isfinite(iou)},
        }

    def quality(self, compared: Compared) -> dict[str, Any]:
        """Also the IoU that each class loses, and how its edges lie (Boundary IoU)."""
        from kdpipe.stages.quality.segmentation import segmentation

        return super().quality(compared) | segmentation(compared, self.ignore_index)

    def _confusion(
        self, prediction: NDArray[np.generic], labels: NDArray[np.generic], classes: int
    ) -> NDArray[np.int64]:
        """Pixels that count, by label and prediction: (C, C + 1), the last column for no class."""
        y, p = np.asarray(labels).ravel(), np.asarray(prediction).ravel()
        if self.ignore_index is not None:
            counts = y != self.ignore_index
            y, p = y[counts], p[counts]
        columns = np.minimum(p.astype(np.int64), classes)
        cells = y.astype(np.int64) * (classes + 1) + columns
        counted = np.bincount(cells, minlength=classes * (classes + 1))
        return counted.reshape(classes, classes + 1).astype(np.int64)

    def _ious(self, confusion: NDArray[np.int64]) -> NDArray[np.float64]:
        """Intersection over union of each class, NaN for those in neither labels nor prediction.

        NaN for the ignored class too: no pixel is ever labelled so, and a network that says it is
        already wrong about the class that the pixel has.
        """
        hits = np.diagonal(confusion).astype(np.float64)
        union = confusion.sum(axis=1) + confusion[:, :-1].sum(axis=0) - hits
        if self.ignore_index is not None and self.ignore_index < len(union):
            union[self.ignore_index] = 0
        ious: NDArray[np.float64] = np.where(union > 0, hits / np.maximum(union, 1), np.nan)
        return ious


_NOT_A_CLASS = -100
"""What stands for pixels that do not count in the loss; no label can be negative."""


def _no_class(prediction: NDArray[Any]) -> int:
    """What a prediction says of a pixel whose logits are not all finite."""
    return int(np.iinfo(prediction.dtype).max)


def _mean(ious: NDArray[np.float64]) -> float:
    """The mean over the classes that occur; 1 where none does, as nothing is wrong then."""
    return float(np.nanmean(ious)) if np.isfinite(ious).any() else 1.0


def _resized(outputs: Tensor, size: tuple[int, ...]) -> Tensor:
    from torch.nn import functional as F

    if outputs.shape[2:] == size:
        return outputs
    return F.interpolate(outputs, size=size, mode="bilinear", align_corners=False)


def _resized_array(outputs: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    if outputs.shape[2:] == size:
        return outputs
    import torch

    resized: NDArray[np.float32] = _resized(torch.from_numpy(outputs), size).numpy()
    return resized
