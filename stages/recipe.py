"""How a network is trained: the settings that teacher, student and quantized student share."""

from __future__ import annotations

from typing import Literal, Self

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


class Recipe(BaseModel):
    """Optimizer, schedule and budget of one training. The learning rate follows one cosine."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    epochs: PositiveInt = Field(20, description="passes over the train split")
    batch_size: int = Field(128, ge=2, description="samples per step")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd is Nesterov, momentum 0.9")
    learning_rate: PositiveFloat = Field(0.1, description="peak learning rate")
    weight_decay: NonNegativeFloat = Field(5e-4, description="not applied to biases and norms")
    warmup_epochs: NonNegativeInt = Field(1, description="epochs of linear warm-up to the peak")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Szegedy et al. 2016")
    amp: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16 autocast or not; auto: where the processor computes it natively"
    )
    seed: int = Field(0, ge=0, description="of weights, order and augmentation")

    @model_validator(mode="after")
    def _peak_is_reached(self) -> Self:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"`warmup_epochs` must not exceed the {self.epochs} `epochs`")
        return self
