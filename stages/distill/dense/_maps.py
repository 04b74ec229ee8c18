"""Tensor arithmetic of dense methods: sizes, labels, masks. Imported where torch is wanted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdpipe.stages.distill.method import Batch


def matched(student: Tensor, teacher: Tensor, to: str) -> tuple[Tensor, Tensor]:
    """Both at the size of the one that `to` names; the other is resized bilinearly."""
    size = (student if to == "student" else teacher).shape[2:]
    return _resized(student, size), _resized(teacher, size)


def labels_at(labels: Tensor, size: torch.Size) -> Tensor:
    """Labels (B, H, W) -> (B, h, w), each the one nearest to the middle of the new pixel.

    torch's older mode `nearest` takes the corner: at a stride of 16 it is off by 8 pixels.
    """
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


def counted(batch: Batch, values: Tensor, ignore_index: int | None) -> Tensor:
    """1 for each of `values` (B, h, w) that counts, 0 where its label is `ignore_index`.

    Of blended images both labels must count. Everything counts in a batch without a map of labels.
    """
    mask = torch.ones_like(values)
    for key in ("target", "mixed_target"):
        if key in batch and batch[key].ndim == 3:
            mask = mask * _labelled(labels_at(batch[key], values.shape[1:]), ignore_index)
    return mask


def members(batch: Batch, like: Tensor, classes: Tensor, ignore_index: int | None) -> Tensor:
    """Which pixels are of which class: 0 and 1 of shape (B, C, N), N the pixels of `like`.

    Pixels with `ignore_index`, or a label that is none of `classes` (C,), are of no class.
    """
    labels = labels_at(batch["target"], like.shape[2:]).flatten(1)[:, None]
    hits = (labels == classes[:, None]) & _labelled(labels, ignore_index)
    return hits.to(like.dtype)


def _labelled(labels: Tensor, ignore_index: int | None) -> Tensor:
    return (
        torch.ones_like(labels, dtype=torch.bool)
        if ignore_index is None
        else (labels != ignore_index)
    )


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask` is 1; 0 where it is 1 nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def unit(vectors: Tensor, dim: int = 1) -> Tensor:
    """Unit vectors; those shorter than 1e-6, such as a dead pixel's, stay short."""
    return F.normalize(vectors, dim=dim, eps=1e-6)


def _resized(z: Tensor, size: torch.Size) -> Tensor:
    if z.shape[2:] == size:
        return z
    return F.interpolate(z, size=size, mode="bilinear", align_corners=False)
