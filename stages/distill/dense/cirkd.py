"""CIRKD: how similar pixels are to those of other images, in the batch and in a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from kdpipe.stages.distill.dense.logits import Masked
from kdpipe.stages.distill.feature.maps import at_one_size, require_maps
from kdpipe.stages.distill.method import Batch, Need, Setup, Views

if TYPE_CHECKING:
    from torch import Tensor, nn


class CIRKD(Masked):
    """`mini_batch * L_batch + pixel * L_pixel + region * L_region`, each a mean KL(p_t || p_s).

    A row p is the softmax over similarities (cosine / T) of one pixel to others. L_batch: to the
    N pixels of one image, mean over the pixels of all images and over all images of the batch,
    without labels. L_pixel and L_region: to a sample of the teacher's pixels and class means that
    memories hold, mean over the pixels that have a class; the student's features pass a 1x1
    conv - BN - ReLU - 1x1 conv to the teacher's width first. Maps (B, C, H, W) are brought to the
    smaller size of the two. Zero when both maps, and what the projection gives, agree.

    Each step puts the mean of each class in each image, and up to `pixels_per_image` of its
    pixels, in the memories: after it is scored, and really of that class, unlike in the authors'
    code. Memories are C x size x width numbers, part of every checkpoint. L_batch holds (B N)^2
    similarities: `patch` pools the maps for it. Defaults as in the authors' Cityscapes recipes,
    whose KD term is `pixel_kd`; for VOC they advise memory factors of 0.01.
    """

    summary: ClassVar[str] = "match similarities of pixels across images and to memories"
    paper: ClassVar[str] = "Yang et al. 2022, arXiv:2204.06986"
    needs: ClassVar[tuple[Need, ...]] = ("features", "labels", "dense", "connector", "memory")

    kind: Literal["cirkd"] = "cirkd"
    taps: tuple[str, ...] = Field(("last",), description="the map that is compared, one")
    mini_batch: NonNegativeFloat = Field(1.0, description="factor of the term within the batch")
    pixel: NonNegativeFloat = Field(0.1, description="factor of the term to remembered pixels")
    region: NonNegativeFloat = Field(0.1, description="factor of the term to remembered means")
    temperature: PositiveFloat = Field(0.1, description="divides the cosines")
    patch: PositiveInt = Field(1, description="average pooling of maps for the mini-batch term")
    pixel_memory: PositiveInt = Field(20000, description="pixels that are kept for each class")
    region_memory: PositiveInt = Field(2000, description="means that are kept for each class")
    pixel_sample: PositiveInt = Field(4096, description="pixels drawn for a step, of all classes")
    region_sample: PositiveInt = Field(1024, description="means drawn for a step, of all classes")
    pixels_per_image: PositiveInt = Field(16, description="new pixels of a class of an image")

    def build(self, setup: Setup) -> nn.Module:
        """The projection to the teacher's width, the memories and the class numbers."""
        import torch
        from torch import nn

        from kdpipe.stages.distill.dense._queues import ClassQueues

        require_maps(self, setup, most=1)
        c_s, c_t = setup.student[0][1], setup.teacher[0][1]
        state = nn.Module()
        state.project = nn.Sequential(
            nn.Conv2d(c_s, c_t, 1, bias=False),
            nn.BatchNorm2d(c_t),
            nn.ReLU(),
            nn.Conv2d(c_t, c_t, 1, bias=False),
        )
        state.pixels = ClassQueues(setup.classes, self.pixel_memory, c_t)
        state.regions = ClassQueues(setup.classes, self.region_memory, c_t)
        state.register_buffer("classes", torch.arange(setup.classes))
        return state

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        from kdpipe.stages.distill.dense._maps import masked_mean, members, unit

        f_s, f_t = at_one_size(student[0], teacher[0])
        classes = len(state.classes)
        valid = members(batch, f_t, state.classes, self.ignore_index).sum(dim=1)
        e_s, e_t = (unit(f.flatten(2)).transpose(1, 2) for f in (state.project(f_s), f_t))
        rows_p = state.pixels.sample(self.pixel_sample // classes + 1)
        rows_r = state.regions.sample(self.region_sample // classes + 1)
        pixel = masked_mean(self._divergence(e_s @ rows_p.T, e_t @ rows_p.T), valid)
        region = masked_mean(self._divergence(e_s @ rows_r.T, e_t @ rows_r.T), valid)
        return self.mini_batch * self._within(f_s, f_t) + self.pixel * pixel + self.region * region

    def update(self, student: Views, teachers: tuple[Views, ...], batch: Batch, state: Any) -> None:
        """The teacher's class means, and some of its pixels, into the memories."""
        import torch

        from kdpipe.stages.distill.dense._maps import members, unit

        f_t = unit(at_one_size(student[0], teachers[0][0])[1])
        owned = members(batch, f_t, state.classes, self.ignore_index)
        pixels = f_t.flatten(2).transpose(1, 2)
        means = unit((owned @ pixels).transpose(0, 1), dim=2)
        state.regions.push(means, owned.any(dim=2).T)

        lots = torch.where(owned > 0, torch.rand_like(owned[:, :1]), -1.0)
        drawn = lots.topk(min(self.pixels_per_image, lots.shape[2]), dim=2)
        images = torch.arange(len(pixels), device=pixels.device)[:, None, None]
        rows = pixels[images, drawn.indices]
        kept = drawn.values >= 0
        state.pixels.push(rows.transpose(0, 1).flatten(1, 2), kept.transpose(0, 1).flatten(1))

    def _within(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """The mini-batch term: every pixel against the pixels of every image."""
        import torch
        from torch.nn import functional as F

        from kdpipe.stages.distill.dense._maps import unit

        maps = (F.avg_pool2d(f, self.patch, ceil_mode=True) for f in (f_s, f_t))
        pixels = (unit(f.flatten(2)) for f in maps)
        s, t = (torch.einsum("icm,jcn->ijmn", e, e) for e in pixels)
        return self._divergence(s, t).mean()

    def _divergence(self, s: Tensor, t: Tensor) -> Tensor:
        """KL of each row (last dimension) of similarities."""
        from torch.nn import functional as F

        log_p_s = F.log_softmax(s / self.temperature, dim=-1)
        log_p_t = F.log_softmax(t / self.temperature, dim=-1)
        return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(dim=-1)
