"""CRD: tell a sample's other embedding from those of other samples, kept in a bank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views
from kdpipe.stages.distill.relation._embeddings import embedded, maps_to
from kdpipe.stages.distill.relation._geometry import unit

if TYPE_CHECKING:
    from torch import Tensor, nn


class CRD(Method):
    """Noise-contrastive estimation in both directions, mean over the batch.

    `-[log P+ / (P+ + K/n) + sum_{K negatives} log (K/n) / (P- + K/n)]`, `P = exp(v u / tau) / Z`,
    with v the unit linear embedding of a sample (student or teacher) and u a row of the bank of the
    other network: of the sample itself (+), or of one drawn with replacement among the n of the
    train split. Draws of the sample's own class do not count, and the sum of the others is scaled
    up to K; a class is known once its sample was seen. K is `negatives`, at most n.

    Z is n times the mean of `exp(v u / tau)` over the first batch, and stays. After every step the
    rows of the batch become `n(momentum u + (1 - momentum) v)`. Scores are a (B, n) product from
    which positives and negatives are picked, so no (B, K, width) tensor appears.

    Never zero: 0 is the lower bound, and the two networks agreeing does not reach it. Defaults are
    those of the paper: K 16384, tau 0.07, momentum 0.5, 128 dimensions, weight 0.8.
    """

    summary: ClassVar[str] = "tell the sample's other embedding from those of a memory bank"
    paper: ClassVar[str] = "Tian, Krishnan, Isola 2020, arXiv:1910.10699"
    needs: ClassVar[tuple[Need, ...]] = (
        "vectors", "embedding", "labels", "index", "connector", "memory"
    )  # fmt: skip

    kind: Literal["crd"] = "crd"
    weight: NonNegativeFloat = Field(0.8, description="factor of this term in the total loss")
    taps: tuple[str, ...] = Field(("embedding",), description="the vectors that are embedded")
    negatives: PositiveInt = Field(16384, description="draws per sample, at most the train split")
    temperature: PositiveFloat = Field(0.07, description="divides the scores of pairs")
    momentum: float = Field(0.5, ge=0, lt=1, description="what the bank keeps of its old rows")
    width: PositiveInt = Field(128, description="dimensions of the embeddings and the bank")

    def build(self, setup: Setup) -> nn.Module:
        """Embeddings, a bank for each network, the labels seen so far, and log Z (inf: unset)."""
        import torch

        n = setup.samples
        found = f"{n} in the train split"
        self.require(n > 1, "needs samples to tell apart", found, "give 2 samples or more")
        state = maps_to(self.width, self, setup)
        bound = math.sqrt(3 / self.width)
        for name in ("student", "teacher"):
            bank = torch.empty(n, self.width).uniform_(-bound, bound)
            state.register_buffer(f"{name}_bank", bank)
        state.register_buffer("labels", torch.full((n,), -1))
        state.register_buffer("log_z", torch.full((2,), math.inf))
        return state

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring, each network against the bank of the other."""
        import torch

        v_s, v_t = embedded(student, teacher, state)
        index, n = batch["index"], len(state.labels)
        draws = torch.randint(n, (len(index), min(self.negatives, n)), device=index.device)
        others = state.labels[draws] != batch["target"][:, None]
        counts = others & (draws != index[:, None])
        by_student = self._contrast(v_s, state.teacher_bank, state.log_z[0], index, draws, counts)
        by_teacher = self._contrast(v_t, state.student_bank, state.log_z[1], index, draws, counts)
        return by_student + by_teacher

    def update(self, student: Views, teachers: tuple[Views, ...], batch: Batch, state: Any) -> None:
        """Set Z if this was the first batch; blend the batch into the banks."""
        import torch

        v_s, v_t = embedded(student, teachers[0], state)
        sides = zip((v_s, v_t), (state.teacher_bank, state.student_bank), state.log_z, strict=True)
        fresh = []
        for v, bank, known in sides:
            scores = v @ bank[: self.negatives].T / self.temperature
            fresh.append(self._log_z(scores, len(bank), known))
        state.log_z.copy_(torch.stack(fresh))
        index = batch["index"]
        for bank, v in ((state.student_bank, v_s), (state.teacher_bank, v_t)):
            bank[index] = unit(self.momentum * bank[index] + (1 - self.momentum) * v)
        state.labels[index] = batch["target"]

    def _contrast(
        self, v: Tensor, bank: Tensor, log_z: Tensor, index: Tensor, draws: Tensor, counts: Tensor
    ) -> Tensor:
        """One direction. v (B, width); draws, counts (B, K): rows of the bank, and which count."""
        from torch.nn import functional as F

        negatives = draws.shape[1]
        scores = v @ bank.T / self.temperature
        offset = self._log_z(scores, len(bank), log_z) + math.log(negatives / len(bank))
        attract = F.logsigmoid(scores.gather(1, index[:, None]) - offset)
        repel = F.logsigmoid(offset - scores.gather(1, draws)) * counts
        mean = repel.sum(dim=1) / counts.sum(dim=1).clamp(min=1)
        return -(attract.squeeze(1) + negatives * mean).mean()

    def _log_z(self, scores: Tensor, n: int, known: Tensor) -> Tensor:
        """log Z as known, else from the scores (B, ...) of as many rows of the bank as are drawn.

        The bank, n rows, is still random then, so its first rows do as well as any others.
        """
        some = scores[:, : self.negatives].detach().flatten()
        fresh = some.logsumexp(dim=0) + math.log(n / some.numel())
        return fresh.where(known.isinf(), known)
