"""Label maps in training batches: whatever happens to an image happens to its map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdpipe.stages.augment import Augment
from kdpipe.stages.dataset import Split
from kdpipe.stages.distill.graph import Supervised
from kdpipe.stages.recipe import Mixing
from kdpipe.stages.tasks.segmentation import Segmentation
from kdpipe.stages.training.batches import Loader
from kdpipe.stages.training.device import Device
from kdpipe.targets.device.preprocess import Preprocess

CPU = Device("cpu", bf16=False)
COUNT, CLASSES, SHAPE = 30, 3, (6, 5)


@pytest.fixture
def split() -> Split:
    """Grey images whose pixels are 80 * label + 10..49: label and sample can be told from them."""
    rng = np.random.default_rng(0)
    maps = rng.integers(0, CLASSES, (COUNT, *SHAPE), dtype=np.uint8)
    images = maps[..., None] * np.uint8(80) + rng.integers(10, 50, (COUNT, *SHAPE, 1), np.uint8)
    return Split("train", images, maps, Preprocess(*SHAPE, (0.5,), (0.25,)), ignored=255)


def batch_of(split: Split, epoch: int = 0, **settings: Any) -> dict[str, torch.Tensor]:
    (batch,) = Loader(split, COUNT, 0, CPU, **settings).epoch(epoch)
    return batch


def pixels_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, H, W), before normalisation."""
    return torch.round((batch["input"][:, 0] * 0.25 + 0.5) * 255).to(torch.uint8)


@pytest.mark.parametrize("augment", [{"shift": 2}, {"flip": True}, {"shift": 1, "flip": True}])
def test_images_and_maps_are_moved_alike(split: Split, augment: dict[str, Any]):
    """Every pixel still shows its label; what a shift brings in has none."""
    batch = batch_of(split, augment=Augment(**augment))

    pixels, target = pixels_of(batch), batch["target"]
    inside = target != 255
    assert target.dtype == torch.uint8
    assert torch.equal((pixels // 80)[inside], target[inside])
    assert (pixels[~inside] == 0).all()
    assert (~inside).any() == ("shift" in augment)
    assert not torch.equal(target, batch_of(split)["target"])


def test_cutmix_pastes_the_label_map_too(split: Split):
    """Every pixel has the label of the image that it came from, and the loss is of these."""
    changed = 0

    for epoch in range(8):
        batch = batch_of(split, epoch, mixing=Mixing(cutmix=1.0))
        logits = torch.randn(COUNT, CLASSES, *SHAPE)
        loss = Supervised(task=Segmentation()).loss((logits,), (), batch, None)

        assert torch.equal(pixels_of(batch) // 80, batch["target"])
        plain = F.cross_entropy(logits, batch["target"].long())
        assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
        changed += int((batch["target"] != batch_of(split, epoch)["target"]).sum())

    assert changed > 100


def test_mixup_blends_the_losses_of_both_maps(split: Split):
    """`lam l(y) + (1 - lam) l(y2)`, with the map of the image that was blended in."""
    own = batch_of(split)
    batch = batch_of(split, mixing=Mixing(mixup=1.0))
    lam = batch["mix"].item()
    logits = torch.randn(COUNT, CLASSES, *SHAPE)

    partner = (batch["input"] - lam * own["input"]) / (1 - lam)
    rows = torch.cdist(partner.flatten(1), own["input"].flatten(1)).argmin(dim=1)
    loss = Supervised(task=Segmentation()).loss((logits,), (), batch, None)

    assert torch.equal(batch["target"], own["target"])
    assert torch.equal(batch["mixed_target"], own["target"][rows])
    first, second = (F.cross_entropy(logits, batch[k].long()) for k in ("target", "mixed_target"))
    assert loss.item() == pytest.approx((lam * first + (1 - lam) * second).item(), rel=1e-5)
