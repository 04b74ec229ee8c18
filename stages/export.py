"""The export stage: the networks as ONNX files, proven equal to PyTorch on real samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from kdpipe.stages.base import Artifact, Stage, Work
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.stage import Distilled
from kdpipe.stages.evaluate import Forward, evaluate, network_forward, session_forward
from kdpipe.stages.network import Network
from kdpipe.stages.quantize.stage import Quantized
from kdpipe.stages.tasks import Outcome
from kdpipe.targets.errors import StageError
from kdpipe.targets.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
else:
    from kdpipe.targets.lazy import np

TEACHER = "teacher"
FLAVOURS: tuple[Literal["cpu", "trt"], ...] = ("cpu", "trt")


@dataclass(frozen=True)
class ExportInputs:
    """What exporting reads."""

    data: Dataset
    teacher: Network
    distill: Distilled | None
    quantize: Quantized | None

    @property
    def source(self) -> Network:
        """The network that ships."""
        return self.distill or self.teacher


class Exported(Artifact):
    """The output of the export stage: one ONNX file per network, precision and flavour."""

    @cached_property
    def parity(self) -> dict[str, dict[str, float]]:
        """{file stem: {"max_difference", "output_range", "samples"}}, ONNX against PyTorch."""
        parity: dict[str, dict[str, float]] = json.loads(
            (self.folder / "parity.json").read_text("utf-8")
        )
        return parity

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """{"fp32", "int8"}: what the student's ONNX files did on each eval sample."""
        paths = sorted(self.folder.glob("outcome.*.npz"))
        return {path.name.split(".")[1]: Outcome.load(path) for path in paths}

    @property
    def teacher(self) -> Path:
        """The teacher in fp32."""
        return self.folder / f"{TEACHER}.onnx"

    def student(self, precision: str, flavour: str) -> Path:
        """The network that ships, in the precision and flavour that a target takes."""
        stem = "student.fp32" if precision == "fp32" else f"student.{precision}.{flavour}"
        return self.folder / f"{stem}.onnx"


class Export(Stage):
    """Write teacher and student as ONNX with a free batch dimension, and prove parity."""

    name: ClassVar[str] = "export"
    packages: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxscript", "onnxruntime")
    machine: ClassVar[bool] = True  # parity and the ONNX hops are measured on this processor
    Inputs: ClassVar[type] = ExportInputs
    Output: ClassVar[type[Artifact]] = Exported

    samples: PositiveInt = Field(64, description="real eval samples on which parity is proven")
    tolerance: PositiveFloat = Field(
        1e-3, description="largest fp32 difference, as a share of the range of the outputs"
    )
    tolerance_int8: PositiveFloat = Field(
        0.02, description="largest mean difference of int8 files, as a share of that range"
    )

    def run(self, inputs: ExportInputs, work: Work) -> None:
        """Export each network, compare it with PyTorch, and judge the student's files."""
        x = inputs.data.example(self.samples)
        networks = self._networks(inputs, work)
        parity: dict[str, dict[str, float]] = {}
        for done, (stem, network) in enumerate(networks.items()):
            path = work.out / f"{stem}.onnx"
            self._write(stem, network, inputs, path)
            parity[stem] = self._prove(stem, network, path, x)
            work.observer.progress(done + 1, len(networks), stem)
        (work.out / "parity.json").write_text(json.dumps(parity, indent=1))
        for name, stem in {"fp32": "student.fp32", "int8": "student.int8.cpu"}.items():
            if stem in networks:
                outcome = _judge(work.out / f"{stem}.onnx", inputs.data)
                outcome.save(work.out / f"outcome.{name}.npz")

    def _networks(self, inputs: ExportInputs, work: Work) -> Mapping[str, nn.Module]:
        from kdpipe.stages.quantize.emit import emit

        networks = {TEACHER: inputs.teacher.load(), "student.fp32": inputs.source.load()}
        if inputs.quantize:
            model = inputs.quantize.load(inputs.source, inputs.data)
            networks |= {f"student.int8.{flavour}": emit(model, flavour) for flavour in FLAVOURS}
        return networks

    def _write(self, stem: str, network: nn.Module, inputs: ExportInputs, path: Path) -> None:
        import torch

        from kdpipe.stages.onnx_export import export_onnx

        source = inputs.teacher if stem == TEACHER else inputs.source
        if source.onnx and not stem.startswith("student.int8"):
            _adopt(source.onnx, str(source.blueprint.arguments.get("output", "")), path)
        else:
            export_onnx(network, torch.from_numpy(inputs.data.example(2)), path)

    def _prove(
        self, stem: str, network: nn.Module, path: Path, x: NDArray[np.float32]
    ) -> dict[str, float]:
        """Compare the file with the module; raises StageError beyond the tolerance."""
        int8 = ".int8." in stem
        expected, found = network_forward(network)(x), _forward(path, plain=".trt" in stem)(x)
        difference = np.abs(expected - found)
        scale = max(float(np.ptp(expected)), 1e-12)
        worst = float(difference.mean() if int8 else difference.max()) / scale
        limit = self.tolerance_int8 if int8 else self.tolerance
        if not worst <= limit:
            raise StageError(
                f"{path.name} computes something else than the network it was exported from",
                found=f"difference {worst:.2e} of the output range on {len(x)} samples; "
                f"allowed {limit:.0e}",
                fix="report the model's architecture as a bug, or raise export.tolerance"
                + ("_int8" if int8 else ""),
            )
        return {
            "max_difference": float(difference.max()),
            "mean_difference": float(difference.mean()),
            "output_range": scale,
            "samples": len(x),
        }


def _adopt(given: Path, output: str, path: Path) -> None:
    """The user's ONNX file as one file, whose only output is the named one, the logits."""
    import onnx

    model = onnx.load(given)  # large tensors that lie beside it are read into it
    if output:
        (logits,) = [value for value in model.graph.output if value.name == output]
        del model.graph.output[:]
        model.graph.output.append(logits)
    onnx.save(model, path)


def _forward(path: Path, plain: bool = False) -> Forward:
    """The file in ONNX Runtime; `plain` runs its graph as written, without fusing anything."""
    return session_forward(OnnxRuntime(ahead_of_time=plain, threads=2).open(path))


def _judge(path: Path, data: Dataset) -> Outcome:
    return evaluate(_forward(path), data.eval, data.task)
