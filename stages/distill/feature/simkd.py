"""SimKD: the student learns to feed the teacher's classifier, which ships with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from kdpipe.stages.distill.feature.maps import at_one_size, require_maps, widths
from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views
from kdpipe.stages.models.graft import Graft, site, take_head

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdpipe.stages.models.blueprint import Blueprint
    from kdpipe.stages.models.graft import Site


class SimKD(Method):
    """`mean (P(F_s) - F_t)^2` over batch, channels and positions of the last maps.

    P (1x1, 3x3 and 1x1 convolutions with BatchNorm and ReLU, C_t / `reduction` wide inside) and
    the teacher's classifier become part of the student that ships: its logits are W_t
    pool(P(F_s)) + b_t. The classifier is a frozen copy, which neither gradients nor weight decay
    change. A student's map that is twice, three times, ... as large as its teacher's is averaged to
    that size in front of P, as in the paper; of other sizes the larger is, behind P. Zero where
    P(F_s) = F_t, and then both networks say the same.

    The paper has no other loss: set `supervised: 0` beside it, whose weight then does not matter.
    Defaults: `reduction` 2, weight 1. Both networks must average the tapped map over its
    positions into a linear head; where layers lie between the last stage and the pooling (`neck`
    of a mobilenet), the tap is the last of them.
    """

    summary: ClassVar[str] = "reuse the teacher's classifier, behind a projector that ships"
    paper: ClassVar[str] = "Chen, Mei, Zhang et al. 2022, arXiv:2203.14001"
    needs: ClassVar[tuple[Need, ...]] = ("vectors", "features", "head", "connector")

    kind: Literal["simkd"] = "simkd"
    taps: tuple[str, ...] = Field(("last",), description="the map that is pooled and classified")
    reduction: PositiveInt = Field(2, description="how much narrower the projector is inside")

    def reshape(self, student: Blueprint, teacher: Blueprint) -> Blueprint:
        """The student with the projector and a head as wide as the teacher's.

        Raises UsageError when one of the two is not a map, its average and a linear head.
        """
        self.require(
            student.graft is None,
            "gives the student the teacher's classifier, and it has one already",
            found=f"a head for {student.graft.c_out if student.graft else 0} channels",
            fix="list `simkd` once",
        )
        own = self._site(student, self.taps)
        other = self._site(teacher, self.teacher_taps or self.taps)
        return replace(student, graft=Graft.of(own, other, self.reduction))

    def begin(self, student: nn.Module, teacher: nn.Module) -> None:
        """Hand the classifier over, and freeze it."""
        take_head(student, teacher)

    def build(self, setup: Setup) -> None:
        """Nothing: the projector is a part of the student. Raises UsageError where it is not."""
        require_maps(self, setup, most=1)
        ((c_s, c_t),) = widths(setup)
        self.require(
            c_s == c_t,
            "needs a student with a projector, which ships with it",
            found=f"maps of {c_s} and {c_t} channels",
            fix="build the student from the blueprint that `reshape` returns",
        )

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        from torch.nn import functional as F

        f_s, f_t = at_one_size(student[0], teacher[0])
        return F.mse_loss(f_s, f_t)

    def _site(self, blueprint: Blueprint, taps: tuple[str, ...]) -> Site:
        """Where the network is cut; it is built to look, without a trace in the generator."""
        import torch

        from kdpipe.stages.distill.taps import LOGITS, expand

        self.require(
            blueprint.onnx is None,
            "needs to look inside both networks",
            found=blueprint.model,
            fix="use a method on logits, such as `kd`",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = blueprint.build(pretrained=False)
        roles = blueprint.taps_of(model)
        found = [tap for role in taps for tap in expand(role, roles, 1)]
        self.require(
            len(found) == 1,
            "compares one map of each network",
            found=", ".join(found) or "none",
            fix="taps: [last]",
        )
        path = roles.get(found[0], found[0])
        return site(model, blueprint.shape, path, roles.get(LOGITS, ""), blueprint.model)
