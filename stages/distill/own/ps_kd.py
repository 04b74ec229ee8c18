"""PS-KD: learn from the labels, softened by what the student said an epoch ago."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views

if TYPE_CHECKING:
    from torch import Tensor, nn


class PSKD(Method):
    """`-mean_i sum_c t_ic log p_s,ic` with `t_i = (1 - a) onehot(y_i) + a p_i`, a memory p.

    p_i, a row of (samples, C), is what the student said when it last saw sample i, augmented as
    it was then; `a = alpha * e / epochs` in the e-th epoch, counted for each sample by its own
    visits, so that a sample that an epoch left out is not taken for one that was seen. On the
    first visit there is no past and the target is the label. Logits (B, C), mean over the batch.
    At its minimum, p_s = t, the value is the entropy of t: 0 on the first visit only.

    In the paper this replaces the loss against the labels: set `distill.supervised: 0`, or the
    labels count twice. Defaults: alpha = 0.8 and weight 1, the paper's. The memory takes 4 bytes
    for each sample and class: 20 MB for CIFAR-100, 5 GB for ImageNet.
    """

    summary: ClassVar[str] = "labels softened by the student's own answer of the last epoch"
    paper: ClassVar[str] = "Kim, Ji, Yoon, Hwang 2021, arXiv:2006.12000"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "labels", "index", "memory")
    taught: ClassVar[bool] = False

    kind: Literal["ps_kd"] = "ps_kd"
    alpha: float = Field(0.8, ge=0, le=1, description="weight of the past in the last epoch")

    def build(self, setup: Setup) -> nn.Module:
        """The memory, the visits of each sample, and how many there will be."""
        import torch

        shape = setup.student[0]
        self.require(
            len(shape) == 2,
            "remembers one prediction for each sample",
            found=f"logits {shape}",
            fix="use it with a classifier",
        )
        state = torch.nn.Module()
        state.register_buffer("memory", torch.zeros(setup.samples, setup.classes))
        state.register_buffer("visits", torch.zeros(setup.samples, dtype=torch.long))
        state.register_buffer("epochs", torch.tensor(setup.epochs))
        return state

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        from torch.nn import functional as F

        z, index = student[0], batch["index"]
        onehot = F.one_hot(batch["target"], z.shape[1]).to(z)
        visits = state.visits[index, None]
        a = (self.alpha * (visits + 1) / state.epochs).clamp(max=self.alpha) * (visits > 0)
        target = onehot + a.to(z) * (state.memory[index].to(z) - onehot)
        loss: Tensor = -(target * F.log_softmax(z, dim=1)).sum(dim=1).mean()
        return loss

    def update(self, student: Views, teachers: tuple[Views, ...], batch: Batch, state: Any) -> None:
        """Remember what the student said of these samples."""
        index = batch["index"]
        state.memory[index] = student[0].softmax(dim=1).to(state.memory)
        state.visits[index] += 1
