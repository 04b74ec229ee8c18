"""What every target promises: files in, files out, and a session that runs what was compiled.

A target is its own settings: the fields of the class are the YAML of one entry under `targets:`.
It knows no stage, no artifact store and no config file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from kdpipe.targets.audit import Audit as Audit
from kdpipe.targets.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

Tensors = Mapping[str, "NDArray[np.generic]"]
Precision = Literal["fp32", "int8", "bf16"]


@dataclass(frozen=True)
class Missing:
    """Why a target cannot run here, and the command or part that would mend it."""

    reason: str
    fix: str


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an artifact; a dimension of None is free (the batch)."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def fits(self, array: NDArray[np.generic]) -> bool:
        """Whether `array` has this type and this shape, free dimensions aside."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(want in (None, has) for want, has in zip(self.shape, array.shape, strict=True))
        )

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('any' if n is None else str(n) for n in self.shape)})"


class Session(ABC):
    """An artifact loaded into its runtime, ready to run. Use as a context manager."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        """Run once; {input name: array} -> {output name: array}. The arrays are the caller's.

        Any thread may call, also several at once, who may have to take turns.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the runtime holds; running afterwards is an error."""

    def check(self, feeds: Tensors) -> None:
        """Raise StageError unless `feeds` has exactly the names, types and shapes of the inputs.

        Every `run` calls it first: some runtimes cast, reshape or broadcast in silence.
        """
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is None or not spec.fits(array):
                found = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise StageError(f"input {spec.name!r} takes {spec}", found=found)
        if len(feeds) != len(self.inputs):
            extra = sorted(set(feeds) - {spec.name for spec in self.inputs})
            raise StageError(f"the artifact has no input {', '.join(map(repr, extra))}")

    @property
    def batch(self) -> int | None:
        """The batch size compiled into the artifact, or None where any will do."""
        return self.inputs[0].shape[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Target(BaseModel, ABC):
    """A runtime, a device and a precision that an ONNX file can be compiled for."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    flavour: ClassVar[str] = "cpu"
    """Which of the exporter's int8 files it takes: `cpu` (uint8) or `trt` (int8, zero point 0)."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions decide what is compiled; they are part of the stage's key."""
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    """In which its artifacts can run."""
    fuses_activations: ClassVar[bool] = False
    """Whether its int8 convolutions take activations other than ReLU and ReLU6 with them."""
    rounds_before_activations: ClassVar[bool] = False
    """Whether a convolution runs in int8 when its result is rounded before such an activation."""
    device: ClassVar[str] = "CPU"
    reproducible: ClassVar[bool] = True
    """Whether compiling the same ONNX twice gives the same bytes."""
    summary: ClassVar[str] = ""

    name: str
    precision: Precision | None = Field(
        None,
        description="fp32, int8 or, for OpenVINO, bf16;"
        " by default int8 when the chain quantizes, else fp32",
    )
    required: bool = Field(True, description="exit 4 when this target cannot run here")
    threads: PositiveInt = Field(1, description="threads of the runtime, also when measured")

    @field_validator("precision")
    @classmethod
    def _can_run(cls, precision: Precision | None) -> Precision | None:
        if precision is not None and precision not in cls.precisions:
            has = " or ".join(cls.precisions)
            raise ValueError(f"it does not run in {precision}; use {has}")
        return precision

    @property
    def id(self) -> str:
        """How results, rules and file names call the artifact, e.g. `openvino-int8`."""
        return f"{self.name}-{self.precision}" if self.precision else self.name

    @property
    def source(self) -> Literal["fp32", "int8"]:
        """The precision of the ONNX file that it compiles; bf16 is made of the fp32 one."""
        return "int8" if self.precision == "int8" else "fp32"

    @abstractmethod
    def missing(self) -> Missing | None:
        """Why it cannot run on this machine, or None when it can. Imports nothing heavy."""

    def broken(self) -> Missing | None:
        """Why a runtime that is not `missing` does not even import; slow, for `kdpipe doctor`."""
        return None

    @abstractmethod
    def compile(self, onnx: Path, folder: Path) -> Path:
        """Compile `onnx` into the empty `folder` and return the artifact, a file or the folder.

        Raises StageError when the runtime refuses the model.
        """

    @abstractmethod
    def open(self, artifact: Path) -> Session:
        """Load an artifact that `compile` made.

        Raises StageError when the runtime falls back to another provider or device in silence.
        """

    @abstractmethod
    def audit(self, artifact: Path) -> Audit:
        """Read from the runtime which precision its kernels really use."""
