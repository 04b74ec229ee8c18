"""What is rounded, to how many bits, from which ranges: the settings; `prepare.py` follows them.

Whatever would have no effect is refused: a setting of another mode, a pattern that names no layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    model_validator,
)

from kdpipe.stages.choice import choice

if TYPE_CHECKING:
    from kdpipe.stages.quantize.adaround import Settings
    from kdpipe.stages.quantize.observers import Observer

_SETTINGS = ConfigDict(frozen=True, extra="forbid", defer_build=True)

Mode = Literal["none", "ptq", "qat", "qad"]
TRAINING: tuple[Mode, ...] = ("qat", "qad")
_ANY_ENGINE = frozenset({"mode", "engine", "ranges"})


class Moving(BaseModel):
    """Minimum and maximum of each batch, averaged over the batches (Jacob et al. 2018)."""

    model_config = _SETTINGS

    kind: Literal["moving"] = "moving"
    momentum: float = Field(0.1, gt=0, le=1, description="weight of a batch against those before")

    def observer(self) -> Observer:
        """What reads one range."""
        from kdpipe.stages.quantize.observers import MovingRange

        return MovingRange(self.momentum)


class Quantile(BaseModel):
    """All but the rarest values: for activations with a few far outliers."""

    model_config = _SETTINGS

    kind: Literal["percentile"] = "percentile"
    percent: float = Field(99.99, gt=50, le=100, description="of the values below the upper end")

    def observer(self) -> Observer:
        """What reads one range."""
        from kdpipe.stages.quantize.observers import Percentile

        return Percentile(self.percent)


class LeastError(BaseModel):
    """The range whose rounding and clipping together have the least mean squared error."""

    model_config = _SETTINGS

    kind: Literal["mse"] = "mse"
    candidates: PositiveInt = Field(128, description="ranges that are tried, equally spaced")

    def observer(self) -> Observer:
        """What reads one range."""
        from kdpipe.stages.quantize.histograms import LeastSquares

        return LeastSquares(self.candidates)


class LeastDivergence(BaseModel):
    """The range that keeps most information, as TensorRT's calibrator finds it (Migacz 2017)."""

    model_config = _SETTINGS

    kind: Literal["entropy"] = "entropy"
    stride: PositiveInt = Field(16, description="bins of 2048 between two ranges that are tried")

    def observer(self) -> Observer:
        """What reads one range."""
        from kdpipe.stages.quantize.histograms import Entropy

        return Entropy(self.stride)


class Nearest(BaseModel):
    """Each weight goes to the nearest number of its grid."""

    model_config = _SETTINGS

    kind: Literal["nearest"] = "nearest"


class Adaround(BaseModel):
    """Whether each weight goes up or down is learned, layer by layer (Nagel et al. 2020)."""

    model_config = _SETTINGS

    kind: Literal["adaround"] = "adaround"
    iterations: PositiveInt = Field(1000, description="steps per layer; the paper has 10000")
    batch_size: PositiveInt = Field(32, description="calibration samples per step")

    def settings(self, seed: int) -> Settings:
        """The same for `adaround.py`."""
        from kdpipe.stages.quantize.adaround import Settings

        return Settings(iterations=self.iterations, batch_size=self.batch_size, seed=seed)


RANGES = (Moving, Quantile, LeastError, LeastDivergence)
ROUNDINGS = (Nearest, Adaround)

if TYPE_CHECKING:
    AnyRanges = Moving | Quantile | LeastError | LeastDivergence
    AnyRounding = Nearest | Adaround
else:
    AnyRanges = choice(RANGES, "kind")
    AnyRounding = choice(ROUNDINGS, "kind")


class Quantization(BaseModel):
    """What becomes of a network's numbers, whatever trains it."""

    model_config = _SETTINGS

    modes: ClassVar[dict[str, tuple[Mode, ...]]] = {
        "correct_bias": ("ptq",),
        "rounding": ("ptq",),
        "learned_scales": TRAINING,
        "freeze": TRAINING,
    }
    """Field -> the modes in which it means something; others mean something in all but `none`."""

    mode: Mode = Field(
        "qat",
        description="none: stay in fp32; ptq: calibrate only; qat: train on, quantized, with the"
        " labels; qad: train on, quantized, with a teacher",
    )
    engine: Literal["graph", "onnxruntime"] = Field(
        "graph",
        description="onnxruntime: ptq by its static quantization, for ONNX files and for networks"
        " that torch.export cannot trace; of the settings below, `ranges` alone is for it",
    )
    ranges: AnyRanges = Field(
        Moving(), description="how calibration reads the range of each activation"
    )
    weight_bits: Literal[4, 8] = Field(
        8, description="of every layer that `layers` does not name; activations have 8"
    )
    layers: dict[str, Literal[4, 8, "float"]] = Field(
        {},
        description="bits of the weights of some layers, or `float`, by names or patterns such as"
        " `layer1.*`; a full name counts before patterns, of which the longest counts",
    )
    before_activations: bool = Field(
        False,
        description="round in front of SiLU and h-swish too: ONNX Runtime then runs the convolution"
        " in int8, OpenVINO is faster without",
    )
    round_output: bool = Field(
        False,
        description="round the network's output too: ONNX Runtime then runs a last convolution,"
        " such as that of a segmentation network, in int8",
    )
    equalize: bool = Field(
        False, description="first even out the channels of neighbouring layers (Nagel et al. 2019)"
    )
    correct_bias: bool = Field(
        False, description="ptq: undo the shift of each channel's mean (Nagel et al. 2019)"
    )
    rounding: AnyRounding = Field(Nearest(), description="ptq: where weights go on their grid")
    learned_scales: bool = Field(
        False, description="qat, qad: scales are parameters (LSQ, Esser et al. 2020)"
    )
    freeze: float | None = Field(
        None,
        gt=0,
        le=1,
        description="qat, qad: share of the training in which ranges follow the batches; null: they"
        " stand still from the start",
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="how much of the task's metric (0.01: one point of a hundred) the int8 file may"
        " lose in ONNX Runtime on the calibration samples, against fp32; layers go back to float"
        " until it is met, those that hurt most first",
    )
    time_budget: NonNegativeFloat = Field(
        600.0, description="seconds that the search for these layers may take, for each network"
    )

    @model_validator(mode="after")
    def _every_setting_counts(self) -> Self:
        for name in sorted(self.model_fields_set - {"mode"}):
            meant = self.modes.get(name, ("ptq", *TRAINING))
            if self.mode not in meant and self._is_changed(name):
                where = " and ".join(meant)
                raise ValueError(f"`{name}` does nothing under mode {self.mode}; it is for {where}")
        if self.learned_scales and self.freeze:
            raise ValueError("`freeze` does nothing under learned_scales: training moves them")
        if self.max_drop is None and self._is_changed("time_budget"):
            raise ValueError("`time_budget` does nothing without `max_drop`")
        return self

    @model_validator(mode="after")
    def _the_engine_can(self) -> Self:
        if self.engine == "graph":
            return self
        if self.mode in TRAINING:
            raise ValueError("`engine: onnxruntime` cannot train the network: write `mode: ptq`")
        if isinstance(self.ranges, LeastError):
            raise ValueError(
                "`engine: onnxruntime` has no ranges mse: write `ranges: percentile`, entropy or"
                " moving"
            )
        given = self.model_fields_set & set(Quantization.model_fields) - _ANY_ENGINE
        idle = [name for name in sorted(given) if self._is_changed(name)]
        if isinstance(self.ranges, LeastDivergence) and self.ranges != LeastDivergence():
            idle.append("ranges.stride")
        if idle:
            raise ValueError(f"`{idle[0]}` does nothing under engine onnxruntime; it is for graph")
        return self

    def _is_changed(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def adaround(self) -> Adaround | None:
        """How roundings are learned, where they are."""
        return self.rounding if isinstance(self.rounding, Adaround) else None
