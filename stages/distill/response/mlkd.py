"""MLKD: match predictions on two views, sample by sample, and how samples and classes relate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from kdpipe.stages.distill.method import Batch, Need, Setup, Views
from kdpipe.stages.distill.response.kd import softened_kl
from kdpipe.stages.distill.response.logits import LogitMethod
from kdpipe.stages.views import Strong, View

if TYPE_CHECKING:
    from torch import Tensor, nn


class MLKD(LogitMethod):
    """The sum over two views of the images and over temperatures T of three terms:

    - instance: `T^2 KL(p_t || p_s)`, summed over classes, mean over the batch;
    - batch: `C ||p_s p_s^T - p_t p_t^T||^2 / B^2`, squared Frobenius norm of (B, B);
    - class: `C ||p_s^T p_s - p_t^T p_t||^2 / B^2`, squared Frobenius norm of (C, C).

    p is the softmax of logits (B, C) / T. The views are the augmented images, and a `strong` change
    of them (brightness, contrast, cutout), which both networks see. `normalise: paper` divides the
    last two by B and by C as published. Then they grow with B / C and (B / C)^2 and rule the
    training: at 10 classes and batches of 64 it can diverge. Here their size at every B and C is
    that of B = C (published: 64 and 100). Zero when both networks agree.

    All three terms count on both views, for every sample and class: the published code leaves the
    strong view out of the batch and class terms, takes weak logits in strong terms, and multiplies
    by masks of unsure samples what is already a mean.

    Defaults: T in 2 to 6 and weight 0.9, the authors' for CIFAR-100, beside supervised losses of
    weight 0.1 on both views (here `supervised` is on the first one) over a schedule of 480 epochs.
    """

    summary: ClassVar[str] = "match predictions, and relations of samples and classes, on 2 views"
    paper: ClassVar[str] = "Jin, Wang, Lin 2023, doi:10.1109/CVPR52729.2023.02325"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "views")
    views: ClassVar[Mapping[str, View]] = {"strong": Strong()}

    kind: Literal["mlkd"] = "mlkd"
    weight: NonNegativeFloat = Field(0.9, description="factor of this term in the total loss")
    taps: tuple[str, ...] = Field(
        ("logits", "strong/logits"), description="logits of each view, which are compared in pairs"
    )
    temperatures: tuple[PositiveFloat, ...] = Field(
        (2.0, 3.0, 4.0, 5.0, 6.0), min_length=1, description="the terms are summed over these"
    )
    normalise: Literal["size", "paper"] = Field(
        "size", description="divide relations for the same size at any B and C, or by B and by C"
    )

    def build(self, setup: Setup) -> nn.Module | None:
        """Nothing to build. Raises UsageError for dense outputs and for views without a pair."""
        super().build(setup)
        shapes = setup.student + setup.teacher
        self.require(
            all(len(shape) == 2 for shape in shapes),
            "compares one vector of class scores per image",
            f"outputs of shapes {', '.join(map(str, shapes))}",
            "use `kd`, which takes an output for every pixel",
        )
        self.require(
            len(setup.student) == len(setup.teacher),
            "compares the same views of both networks",
            f"{len(setup.student)} of the student, {len(setup.teacher)} of the teacher",
            "give as many `teacher_taps` as `taps`, or leave `teacher_taps` out",
        )
        return None

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The sum of `logit_loss` over the views."""
        import torch

        compare = super().loss
        pairs = zip(student, teacher, strict=True)
        return torch.stack([compare((z_s,), (z_t,), batch, state) for z_s, z_t in pairs]).sum()

    def logit_loss(self, z_s: Tensor, z_t: Tensor, batch: Batch, state: Any) -> Tensor:
        """The three terms of one view, summed over temperatures."""
        import torch

        return torch.stack([self._aligned(z_s, z_t, T) for T in self.temperatures]).sum()

    def _aligned(self, z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
        """Instance, batch and class terms of logits (B, C) at one temperature."""
        (B, C), T = z_s.shape, temperature
        p_s, p_t = (z_s / T).softmax(dim=1), (z_t / T).softmax(dim=1)
        samples = (p_s @ p_s.T - p_t @ p_t.T).square().sum()
        classes = (p_s.T @ p_s - p_t.T @ p_t).square().sum()
        if self.normalise == "paper":
            return softened_kl(z_s, z_t, T) + samples / B + classes / C
        return softened_kl(z_s, z_t, T) + (samples + classes) * (C / B**2)
