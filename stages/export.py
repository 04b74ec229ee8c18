"""The export stage: the networks as ONNX files, proven equal to PyTorch on real samples.

Int8 files that the quantize stage has made come along, compared with the fp32 file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from kdpipe.stages.base import Artifact, Observer, Stage, Work
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.stage import Distilled
from kdpipe.stages.evaluate import (
    Forward,
    evaluate,
    network_forward,
    session_forward,
    together,
)
from kdpipe.stages.network import Network
from kdpipe.stages.parity import STEPS, differences, in_steps
from kdpipe.stages.quantize.stage import Quantize, Quantized
from kdpipe.stages.tasks import Outcome
from kdpipe.targets.errors import StageError, UsageError
from kdpipe.targets.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    from torch import nn

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
    def parity(self) -> dict[str, dict[str, Any]]:
        """{file stem: the "reference" and the `differences` from it}; the reference is PyTorch, or
        the fp32 file where int8 files came from ONNX Runtime. Int8 files also have `in_steps`."""
        parity: dict[str, dict[str, Any]] = json.loads(
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
    version: ClassVar[int] = 2  # parity of int8 files in steps
    packages: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxscript", "onnxruntime")
    machine: ClassVar[bool] = True  # parity and the ONNX hops are measured on this processor
    Inputs: ClassVar[type] = ExportInputs
    Output: ClassVar[type[Artifact]] = Exported

    exporter: Literal["dynamo", "torchscript"] = Field(
        "dynamo",
        description="torchscript: for networks that torch.export cannot trace; what depends on"
        " values, such as a Python branch, stays as it was for two samples",
    )
    samples: PositiveInt = Field(64, description="real eval samples on which parity is proven")
    tolerance: PositiveFloat = Field(
        1e-3, description="largest fp32 difference, as a share of the range of the outputs"
    )
    steps_int8: PositiveFloat = Field(
        5.0,
        description="largest mean difference of int8 files, in steps of 1/255 of that range: where"
        " sums are taken in another order, a value near the middle of two steps takes the other",
    )

    half: bool = Field(
        False, description="fp16 for what is not int8 in the file for tensorrt; others stay in fp32"
    )

    def check_chain(self, chain: Mapping[str, Stage]) -> None:
        """Raise UsageError for `half` where no file is written that it is for."""
        quantize = chain.get("quantize")
        assert quantize is None or isinstance(quantize, Quantize)
        self._check_half(quantize.engine if quantize else None)

    def _check_half(self, engine: str | None) -> None:
        if self.half and engine != "graph":
            raise UsageError(
                "export.half does nothing: no int8 file for tensorrt is written here",
                found=f"quantize.engine: {engine}" if engine else "no `quantize` stage",
                fix="remove `export.half`, or quantize with the graph engine",
            )

    def run(self, inputs: ExportInputs, work: Work) -> None:
        """Export each network, compare it with PyTorch, and judge the student's files."""
        quantize = inputs.quantize
        self._check_half(quantize.facts["settings"]["engine"] if quantize else None)
        networks = self._networks(inputs)
        parity: dict[str, dict[str, Any]] = {}
        for done, (stem, network) in enumerate(networks.items()):
            path = work.out / f"{stem}.onnx"
            self._write(stem, network, inputs, path, work.observer)
            parity[stem] = self._prove(stem, network, path, inputs.data)
            work.observer.progress(done + 1, len(networks), stem)
        (work.out / "parity.json").write_text(json.dumps(parity, indent=1))
        for name, stem in {"fp32": "student.fp32", "int8": "student.int8.cpu"}.items():
            if stem in networks:
                outcome = _judge(work.out / f"{stem}.onnx", inputs.data)
                outcome.save(work.out / f"outcome.{name}.npz")

    def _networks(self, inputs: ExportInputs) -> Mapping[str, nn.Module | Path]:
        """By file stem; a path where there is a file already."""
        from kdpipe.stages.quantize.emit import emit

        networks: dict[str, nn.Module | Path] = {
            TEACHER: inputs.teacher.load(),
            "student.fp32": inputs.source.load(),
        }
        if inputs.quantize and inputs.quantize.files:
            files = inputs.quantize.files
            networks |= {f"student.int8.{flavour}": path for flavour, path in files.items()}
        elif inputs.quantize:
            model = inputs.quantize.load(inputs.source, inputs.data)
            networks |= {
                f"student.int8.{flavour}": emit(model, flavour, half=self.half and flavour == "trt")
                for flavour in FLAVOURS
            }
        return networks

    def _write(
        self,
        stem: str,
        network: nn.Module | Path,
        inputs: ExportInputs,
        path: Path,
        observer: Observer,
    ) -> None:
        import torch

        from kdpipe.stages.onnx_export import adopt, export_onnx
        from kdpipe.stages.torchscript import export_torchscript, frozen

        source = inputs.teacher if stem == TEACHER else inputs.source
        example = torch.from_numpy(inputs.data.example(2))
        if isinstance(network, Path):
            shutil.copyfile(network, path)
        elif source.onnx:
            adopt(source.onnx, str(source.blueprint.arguments.get("output", "")), path)
        elif self._by_torchscript(stem):
            places = export_torchscript(network, example, path)
            if stem == TEACHER or inputs.distill:  # without, the student is the teacher
                observer.warn(frozen(source.blueprint.model, places))
        else:
            export_onnx(network, example, path)

    def _by_torchscript(self, stem: str) -> bool:
        """Int8 networks are graphs, which dynamo always traces."""
        return self.exporter == "torchscript" and ".int8." not in stem

    def _prove(
        self, stem: str, network: nn.Module | Path, path: Path, data: Dataset
    ) -> dict[str, Any]:
        """Compare the file with its reference; raises StageError beyond the tolerance."""
        if isinstance(network, Path):
            twin = path.with_name("student.fp32.onnx")
            reference, forward = twin.name, _forward(twin)
        else:
            reference, forward = "PyTorch", network_forward(network)
        # Branches may look at a whole batch: where they were frozen, each sample is one.
        size = 1 if self._by_torchscript(stem) else together(data.task, *data.shape[1:])
        file = _forward(path, plain=".trt" in stem)
        numbers = differences(forward, file, data, self.samples, size)
        if ".int8." in stem:
            numbers |= in_steps(numbers)
        self._require_parity(path, reference, numbers)
        return {"reference": reference, **numbers}

    def _require_parity(self, path: Path, reference: str, numbers: Mapping[str, Any]) -> None:
        """Raise StageError beyond the tolerance; NaN is beyond any."""
        int8 = "mean_steps" in numbers
        share = numbers["mean_difference" if int8 else "max_difference"] / numbers["output_range"]
        if share <= (self.steps_int8 / STEPS if int8 else self.tolerance):
            return
        found, allowed = f"difference {share:.2e} of the output range", f"{self.tolerance:.0e}"
        if int8:
            found += f", {numbers['mean_steps']:.1f} quantization steps in the mean"
            allowed = f"{self.steps_int8:g} steps"
        raised = "raise export." + ("steps_int8" if int8 else "tolerance")
        if reference == "PyTorch":
            other, fix = (
                "the network it was exported from",
                "report the model's architecture as a bug",
            )
            if self._by_torchscript(path.stem):
                fix = "keep Python branches on tensor values out of forward()"
        else:
            other, fix = reference, "calibrate with more samples or other `quantize.ranges`"
        raise StageError(
            f"{path.name} computes something else than {other}",
            found=f"{found}, on {numbers['samples']} samples; allowed {allowed}",
            fix=f"{fix}, or {raised}",
        )


def _forward(path: Path, plain: bool = False) -> Forward:
    """The file in ONNX Runtime; `plain` runs its graph as written, without fusing anything."""
    return session_forward(OnnxRuntime(ahead_of_time=plain, threads=2).open(path))


def _judge(path: Path, data: Dataset) -> Outcome:
    return evaluate(_forward(path), data.eval, data.task)
