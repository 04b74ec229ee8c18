"""The quantize stage: the network that ships as int8, calibrated, trained or distilled on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from kdpipe.stages import calibration
from kdpipe.stages.base import Artifact, Observer, Stage, Work
from kdpipe.stages.choice import choice
from kdpipe.stages.data import Data
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill import METHODS
from kdpipe.stages.distill.method import Method
from kdpipe.stages.distill.response.kd import KD
from kdpipe.stages.distill.schemes.base import starts_from_teacher
from kdpipe.stages.distill.schemes.perform import Announced
from kdpipe.stages.distill.stage import CONTROL, Distill, Distilled
from kdpipe.stages.distill.windows import require_terms
from kdpipe.stages.network import Judged, Network, judge
from kdpipe.stages.quantize.settings import TRAINING, LeastError, Mode, Quantization
from kdpipe.stages.recipe import Recipe
from kdpipe.stages.tasks import Outcome, Task
from kdpipe.targets.base import Precision
from kdpipe.targets.errors import UsageError, listing

if TYPE_CHECKING:
    from kdpipe.stages.quantize.engine import QuantizedModel

    AnyMethod = Method
else:
    AnyMethod = choice(METHODS, "kind")

STATE = "quantized.safetensors"


@dataclass(frozen=True)
class QuantizeInputs:
    """What quantization reads: the distilled student, or the teacher where there is none."""

    data: Dataset
    teacher: Network
    distill: Distilled | None

    @property
    def source(self) -> Network:
        """The network that ships."""
        return self.distill or self.teacher

    @property
    def control(self) -> Network | None:
        """The control of the network that ships, where one was trained."""
        return self.distill.control if self.distill else None


class Quantized(Judged):
    """The output of the quantize stage: scales and int8-aware weights, or int8 files.

    Facts: `mode`, `settings` (all of the stage), `calibration` (which samples), `losses` of a
    training, what tools before it did to the weights (`equalized`, and what is in the way in
    layers that are `not_equalized`; `rounding`), and under `max_drop` those of `search.search`:
    `max_drop_met`, `returned` (layers in float), `search`. The outcome is that of PyTorch, or of
    `files["cpu"]` in ONNX Runtime.
    """

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """{flavour: int8 ONNX file} under `engine: onnxruntime`; else empty, and `load` works."""
        return {path.name.split(".")[1]: path for path in sorted(self.folder.glob("int8.*.onnx"))}

    @property
    def runtime(self) -> str:
        """Where the outcome was measured, in words."""
        return "ONNX Runtime" if self.files else "PyTorch"

    def load(self, source: Network, data: Dataset) -> QuantizedModel:
        """The quantized network; `source` is the network that was quantized."""
        from safetensors.torch import load_file

        from kdpipe.stages.quantize.prepare import inserted

        settings = Quantize.model_validate(self.facts["settings"])
        model = inserted(settings, source, data, self.facts.get("returned", ()))
        model.load_state_dict(load_file(self.folder / STATE))
        return model

    @cached_property
    def control(self) -> Quantized | None:
        """The quantized control; None where there is none."""
        folder = self.folder / CONTROL
        return Quantized(folder) if folder.is_dir() else None


class Quantize(Quantization, Recipe, Stage):
    """Make the network int8: after training (`ptq`), or with more training that knows of it."""

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 2  # settings are stored beside the weights; the control comes along
    packages: ClassVar[tuple[str, ...]] = ("torch", "numpy")
    Inputs: ClassVar[type] = QuantizeInputs
    Output: ClassVar[type[Artifact]] = Quantized
    modes: ClassVar[dict[str, tuple[Mode, ...]]] = {
        **Quantization.modes,
        **{name: TRAINING for name in Recipe.model_fields if name != "seed"},
        **dict.fromkeys(("methods", "teacher", "supervised", "supervised_from"), ("qad",)),
    }

    epochs: PositiveInt = Field(2, description="qat, qad: passes over the train split")
    optimizer: Literal["sgd", "adamw", "rmsprop"] = Field(
        "adamw", description="qat, qad; sgd is Nesterov"
    )
    learning_rate: PositiveFloat = Field(3e-4, description="qat, qad: peak learning rate")
    weight_decay: NonNegativeFloat = Field(0.0, description="qat, qad")
    warmup_epochs: NonNegativeInt = Field(0, description="qat, qad: epochs of linear warm-up")
    methods: tuple[AnyMethod, ...] = Field(
        (KD(),), description="qad: as in `distill`, see `kdpipe methods`"
    )
    teacher: Literal["teacher", "twin"] = Field(
        "teacher", description="qad: the teacher of the chain, or the network itself in fp32"
    )
    supervised: NonNegativeFloat = Field(1.0, description="qad: weight of the labels' loss")
    supervised_from: NonNegativeInt = Field(0, description="qad: epoch from which labels count")
    control: bool | None = Field(
        None,
        description="also quantize the control of `distill`, alike, to see what int8 costs each of"
        " the two; the stage takes twice as long. Default: where there is a control",
    )

    @model_validator(mode="after")
    def _seed_counts(self) -> Self:
        if self.mode == "ptq" and self.seed and not self.adaround():
            raise ValueError("`seed` does nothing under mode ptq without `rounding: adaround`")
        return self

    @model_validator(mode="after")
    def _qad_has_methods(self) -> Self:
        if self.mode == "qad" and not self.methods:
            raise ValueError("qad without `methods` is training with labels alone: use mode qat")
        if self.teacher == "twin" and not any(method.taught for method in self.methods):
            raise ValueError("`teacher` does nothing: none of the `methods` learns from one")
        return self

    @model_validator(mode="after")
    def _labels_count(self) -> Self:
        if self.mode == "qad" and not self.supervised:
            for name in ("supervised_from", "label_smoothing", "class_weights"):
                if self._is_changed(name):
                    raise ValueError(f"`{name}` does nothing under `supervised: 0`")
        if self.supervised_from >= self.epochs:
            raise ValueError(f"`supervised_from` must be below the {self.epochs} `epochs`")
        return self

    def distributions(self) -> tuple[str, ...]:
        """torch; also what writes and runs ONNX files, where that is done here."""
        files = ("onnx", "onnxscript", "onnxruntime") if self.measures() else ()
        return self.packages + files

    def measures(self) -> bool:
        """The engine onnxruntime and `max_drop` judge files in ONNX Runtime, whose int8 kernels
        differ between processors."""
        return self.engine == "onnxruntime" or self.max_drop is not None

    @property
    def skipped(self) -> bool:
        """`mode: none` is another spelling of `quantize: null`."""
        return self.mode == "none"

    def precision(self) -> Precision | None:
        """int8, unless the mode is none."""
        return None if self.skipped else "int8"

    def check(self) -> None:
        """Raise UsageError for methods that change or copy the student, or never count."""
        if self.mode != "qad":
            return
        for method in self.methods:
            if starts_from_teacher(method) or method.copies:
                raise UsageError(
                    f"quantize.methods: '{method.kind}' needs a student that can still be rebuilt",
                    found="mode: qad, whose student is a captured graph",
                    fix=f"use '{method.kind}' in `distill`, and here another method, such as `kd`",
                )
        labels_from = self.supervised_from if self.supervised else self.epochs
        require_terms(self.name, self.methods, self.epochs, labels_from)

    def check_task(self, task: Task) -> None:
        """Raise UsageError for a method that is for other outputs than the task's."""
        if self.mode == "qad":
            for method in self.methods:
                method.under(task)

    def check_chain(self, chain: Mapping[str, Stage]) -> None:
        """Raise UsageError for a control that nobody trains, and `max_drop` without labels."""
        distill, data = chain.get("distill"), chain.get("data")
        if self.control and not (isinstance(distill, Distill) and distill.control):
            raise _no_control(distill is not None)
        if self.max_drop is not None and isinstance(data, Data):
            calibration.require_labels(isinstance(data.calibration, calibration.Calibration))

    def run(self, inputs: QuantizeInputs, work: Work) -> None:
        """Quantize the network that ships, and its control by the same settings and seed."""
        self.check()
        control = self._control(inputs)
        if told := calibration.few(inputs.data):
            work.observer.warn(told)
        self._quantize(inputs.source, inputs, work, "student")
        if control:
            self._quantize(control, inputs, work, CONTROL)

    def _control(self, inputs: QuantizeInputs) -> Network | None:
        if self.control and not inputs.control:
            raise _no_control(inputs.distill is not None)
        return None if self.control is False else inputs.control

    def _quantize(self, source: Network, inputs: QuantizeInputs, work: Work, role: str) -> None:
        """Calibrate, train where asked, judge, and write what `Quantized` reads."""
        started, out = time.monotonic(), work.out / CONTROL if role == CONTROL else work.out
        out.mkdir(exist_ok=True)
        observer = Announced(work.observer, CONTROL) if role == CONTROL else work.observer
        part, done = Work(out, work.scratch / role, observer), dict[str, Any]()
        if self.engine == "onnxruntime":
            outcome = self._quantize_files(source, inputs.data, part)
        else:
            outcome, done = self._quantize_graph(source, inputs, part)
        outcome.save(out / "outcome.npz")
        facts = {
            "mode": self.mode,
            "settings": self.model_dump(mode="json"),
            "calibration": calibration.facts(inputs.data),
            **done,
        }
        (out / "facts.json").write_text(json.dumps(facts, indent=1))
        # Not among the stored facts: the same settings must leave the same output.
        seconds = round(time.monotonic() - started, 3)
        found = {"value": outcome.mean, "n": len(outcome.score), "seconds": seconds}
        work.observer.fact("eval" if role != CONTROL else "eval of the control", **found)

    def _quantize_files(self, source: Network, data: Dataset, work: Work) -> Outcome:
        """Let ONNX Runtime make the int8 files, of both flavours."""
        from kdpipe.stages.quantize.fallback import quantize_files

        assert not isinstance(self.ranges, LeastError), "refused with the settings"
        return quantize_files(source, data, self.ranges, work)

    def _quantize_graph(
        self, source: Network, inputs: QuantizeInputs, work: Work
    ) -> tuple[Outcome, dict[str, Any]]:
        """Calibrate, train and search where asked, and write the weights; also how it went."""
        from safetensors.torch import save_file

        from kdpipe.stages.quantize.prepare import calibrated
        from kdpipe.stages.quantize.search import search

        if self.max_drop is not None:
            calibration.require_labels(inputs.data.own_calibration)
        model, done = calibrated(self, source, inputs.data, self.seed)
        if self.equalize and not done["equalized"]:
            why = listing([f"{what} of {name}" for name, what in done["not_equalized"].items()], 3)
            work.observer.warn(f"quantize.equalize changed no layer; in the way: {why}")
        if self.mode in TRAINING:
            checkpoint = work.scratch.with_suffix(".pt")
            done |= self._train(model, source, inputs, checkpoint, work.observer)
        if self.max_drop is not None:
            model, found = search(self, model, source, inputs.data, work)
            done |= found
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, work.out / STATE)
        return judge(model, inputs.data), done

    def _train(
        self,
        model: QuantizedModel,
        source: Network,
        inputs: QuantizeInputs,
        checkpoint: Path,
        observer: Observer,
    ) -> dict[str, Any]:
        """Train on, with the quantizers in place; returns how it went."""
        import torch

        from kdpipe.stages.quantize.lesson import lesson
        from kdpipe.stages.training import train

        torch.manual_seed(self.seed)
        nodes, edges = lesson(self, model, source, inputs.teacher, inputs.data)
        return train(nodes, edges, self, inputs.data, checkpoint, observer)


def _no_control(distilled: bool) -> UsageError:
    return UsageError(
        "quantize.control: there is no control to quantize",
        found="distill.control: null" if distilled else "no `distill` stage",
        fix="remove `quantize.control`, or let `distill` train a control",
    )
