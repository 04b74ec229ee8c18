"""How a network is trained: the settings that teacher, student and quantized student share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_SETTINGS = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Mixing(BaseModel):
    """Training on blends of two samples, labels too. With both kinds, a coin decides per batch.

    Mixup weighs the losses of both labels, or label maps; so does cutmix of class labels. Cutmix of
    maps pastes the same box of the other map: every pixel keeps the label that it came with.
    """

    model_config = _SETTINGS

    mixup: NonNegativeFloat = Field(
        0.0, description="alpha of Beta(alpha, alpha), the share of each image (Zhang et al. 2018)"
    )
    cutmix: NonNegativeFloat = Field(
        0.0, description="alpha of the share of the area that is pasted (Yun et al. 2019)"
    )

    def apply(self, batch: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Blend `input` with a permutation of itself; adds `mixed_target` and `mix`, the share.

        The loss is `mix` times that of `target` and `1 - mix` times that of `mixed_target`.
        """
        if not self.mixup and not self.cutmix:
            return batch
        import torch

        pastes = bool(self.cutmix) and (not self.mixup or rng.random() < 0.5)
        alpha = self.cutmix if pastes else self.mixup
        lam = float(rng.beta(alpha, alpha))
        x, y = batch["input"], batch["target"]
        other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
        partner = y[other]
        if pastes:
            box, lam = _box(x.shape[-2:], lam, rng)
            blend = _pasted(x, x[other], box)
            if y.ndim == 3:  # maps (B, H, W): one target says it all, and its share is 1
                y = partner = _pasted(y, partner, box)
                lam = 1.0
        else:
            blend = lam * x + (1 - lam) * x[other]
        mixed = {"mixed_target": partner, "mix": x.new_tensor(lam)}
        return {**batch, "input": blend, "target": y, **mixed}


def _box(
    size: Sequence[int], lam: float, rng: np.random.Generator
) -> tuple[tuple[slice, slice], float]:
    """Rows and columns of about (1 - lam) of the area, and the share that is outside of them."""
    height, width = size
    half_h, half_w = (side * (1 - lam) ** 0.5 / 2 for side in (height, width))
    y, z = rng.integers(height), rng.integers(width)
    top, bottom = max(0, round(y - half_h)), min(height, round(y + half_h))
    left, right = max(0, round(z - half_w)), min(width, round(z + half_w))
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return (slice(top, bottom), slice(left, right)), share


def _pasted(x: Tensor, other: Tensor, box: tuple[slice, slice]) -> Tensor:
    """`x` (..., H, W) with a box of `other`."""
    blend = x.clone()
    blend[(..., *box)] = other[(..., *box)]
    return blend


class EarlyStopping(BaseModel):
    """End a training that no longer gets better on held-out training samples, and keep the best.

    The eval split has no say in it: it must not choose what it later judges.
    """

    model_config = _SETTINGS

    patience: PositiveInt = Field(10, description="epochs without a better score before the end")
    holdout: float = Field(0.1, gt=0, lt=1, description="share of train that is held out for it")


class Recipe(BaseModel):
    """Optimizer, schedule and budget of one training."""

    model_config = _SETTINGS

    epochs: PositiveInt = Field(20, description="passes over the train split")
    batch_size: int = Field(128, ge=2, description="samples per step")
    optimizer: Literal["sgd", "adamw", "rmsprop"] = Field("sgd", description="sgd is Nesterov")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and rmsprop")
    learning_rate: PositiveFloat = Field(0.1, description="peak learning rate")
    schedule: Literal["cosine", "linear", "poly", "steps", "constant"] = Field(
        "cosine", description="how it falls after the warm-up; `steps` at the `milestones`"
    )
    milestones: tuple[PositiveInt, ...] = Field((), description="epochs at which `steps` decays")
    decay: float = Field(0.1, gt=0, lt=1, description="factor of `steps` at each milestone")
    weight_decay: NonNegativeFloat = Field(5e-4, description="not applied to biases and norms")
    warmup_epochs: NonNegativeInt = Field(1, description="epochs of linear warm-up to the peak")
    clip_norm: PositiveFloat | None = Field(
        None, description="largest norm of the gradient of all parameters together"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the average of weights that becomes the result"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Szegedy et al. 2016")
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="of the supervised loss, per class; balanced: N / (C n_c)"
    )
    mixing: Mixing | None = Field(None, description="mixup and cutmix")
    early_stopping: EarlyStopping | None = Field(None, description="by held-out train samples")
    amp: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16 autocast or not; auto: where the processor computes it natively"
    )
    seed: int = Field(0, ge=0, description="of weights, order and augmentation")

    @model_validator(mode="after")
    def _peak_is_reached(self) -> Self:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"`warmup_epochs` must not exceed the {self.epochs} `epochs`")
        return self

    @model_validator(mode="after")
    def _nothing_is_idle(self) -> Self:
        if self.schedule == "steps" and not self.milestones:
            raise ValueError("schedule steps needs `milestones`, e.g. [30, 40] of 50 epochs")
        if self.milestones and max(self.milestones) >= self.epochs:
            raise ValueError(f"`milestones` must be below the {self.epochs} `epochs`")
        idle = {
            "milestones": self.schedule != "steps" and f"schedule {self.schedule}",
            "decay": self.schedule != "steps" and f"schedule {self.schedule}",
            "momentum": self.optimizer == "adamw" and "optimizer adamw",
        }
        for name, why in idle.items():
            if why and getattr(self, name) != Recipe.model_fields[name].default:
                raise ValueError(f"`{name}` does nothing under {why}")
        return self
