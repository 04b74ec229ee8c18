"""`max_drop`: layers go back to float until the int8 file, in its runtime, loses no more than that.

Nothing is trained here. Every trial is the real thing: emitted, exported, and judged in ONNX
Runtime on the calibration samples.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from kdpipe.stages.base import Observer, Work
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.evaluate import evaluate, network_forward, session_forward
from kdpipe.stages.network import Network
from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.aten import WEIGHTED, argument, attribute
from kdpipe.stages.quantize.bias import correct_biases
from kdpipe.stages.quantize.emit import emit
from kdpipe.stages.quantize.engine import QuantizedModel, insert, layers
from kdpipe.stages.quantize.layerwise import pair
from kdpipe.stages.quantize.prepare import calibration_batches, float_graph, policy
from kdpipe.stages.quantize.price import price
from kdpipe.stages.quantize.sensitivity import Sensitivity, rounded_layers, scored, sensitivities
from kdpipe.stages.quantize.settings import Quantization
from kdpipe.stages.tasks import Outcome
from kdpipe.targets.onnxruntime import OnnxRuntime

MET, SPENT, EXHAUSTED = "met", "time_budget", "no layer left"
"""Why a search ended."""

_EXACT = 1e-9
"""Differences of means of as many samples are right to this."""


@dataclass(frozen=True)
class Trial:
    """One file: the layers that are in float in it, and the headline metric that it reached, with
    `low` and `high`."""

    returned: tuple[str, ...]
    score: float
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> dict[str, float | None]:
        """Of the metric."""
        return {"low": self.low, "high": self.high}


@dataclass(frozen=True)
class Subject:
    """A trained network in int8 all over, and `graph`, the float one that it was made from."""

    settings: Quantization
    graph: fx.GraphModule
    model: QuantizedModel
    data: Dataset

    def mixed(self, returned: Sequence[str]) -> QuantizedModel:
        """The network with some layers in float, and no training for it.

        What ptq fitted to the rounding of these layers is taken back: AdaRound's weights are those
        of `graph` again, and biases are corrected for what is still rounded.
        """
        mixed = insert(self.graph, policy(self.settings, self.graph, returned))
        loaded = mixed.load_state_dict(self.model.state_dict(), strict=False)
        assert not loaded.missing_keys, "fewer layers in int8 need no other scale"
        if self.settings.adaround():
            self._unround(mixed, returned)
        if self.settings.correct_bias:
            correct_biases(mixed, self.graph, calibration_batches(self.data))
        return mixed

    def _unround(self, mixed: QuantizedModel, returned: Sequence[str]) -> None:
        """A weight that an int8 layer reads too stays as it is."""
        pairs = pair(mixed, self.graph)
        rounded = {layer.weight for layer in pairs if layer.name not in returned}
        for name in {layer.weight for layer in pairs} - rounded:
            attribute(mixed.body, name).data.copy_(attribute(self.graph, name))

    def sensitivities(self, until: float = math.inf) -> tuple[Sensitivity, ...] | None:
        """Of each int8 layer, on the calibration samples; None where `until` comes first."""
        data = self.data
        return sensitivities(
            self.model, self._exact(), self._quantizers, data.calibration, data.task, until
        )

    def _quantizers(self, layer: str) -> set[str]:
        """Those of `model` that round where `layer` is the only one in int8."""
        others = [name for name in layers(self.graph) if name != layer]
        placed = policy(self.settings, self.graph, others).place(self.graph.graph)
        weight = argument(rounded_layers(self.model)[layer], 1)
        return {*placed.activations.values(), str(weight.target)}

    def _exact(self) -> QuantizedModel:
        """The same with the parameters of `graph`; under qat and qad with those it has, as nothing
        else was trained."""
        exact = copy.deepcopy(self.model)
        if self.settings.mode == "ptq":
            exact.body.load_state_dict(self.graph.state_dict(), strict=False)
        return exact

    def write(self, returned: Sequence[str], file: Path) -> None:
        """The file for CPUs."""
        example = torch.from_numpy(self.data.example(2))
        export_onnx(emit(self.mixed(returned), "cpu"), example, file)

    def try_out(self, returned: Sequence[str], file: Path) -> Trial:
        """Write the file, and judge it in ONNX Runtime on the calibration samples."""
        self.write(returned, file)
        with OnnxRuntime(threads=2).open(file) as session:
            outcome = evaluate(session_forward(session), self.data.calibration, self.data.task)
        return Trial(tuple(returned), **_scored(outcome))


@dataclass
class Search:
    """Greedy descent, then back again.

    `least`: the headline metric that is good enough; `until`: when `time.monotonic()` ends it.
    """

    subject: Subject
    least: float
    until: float
    folder: Path
    observer: Observer
    trials: list[Trial] = field(default_factory=list)

    def run(self) -> tuple[str, tuple[Sensitivity, ...]]:
        """Why it ended, and the sensitivities, which are measured only where int8 loses too much.

        The file without float layers is always tried, whatever the budget.
        """
        if self.met(self._try(())):
            return MET, ()
        if self._spent():
            return SPENT, ()
        found = self.subject.sensitivities(self.until)
        if found is None:
            return SPENT, ()
        return self.descend([each.layer for each in sorted(found, key=_harmless)]), found

    def met(self, trial: Trial) -> bool:
        """Whether the file is good enough."""
        return trial.score >= self.least - _EXACT

    @property
    def best(self) -> Trial:
        """The good enough trial with the fewest layers in float; else the best of all."""
        good = [trial for trial in self.trials if self.met(trial)]
        if good:
            return min(good, key=lambda trial: len(trial.returned))
        return max(self.trials, key=lambda trial: (trial.score, -len(trial.returned)))

    def descend(self, order: Sequence[str]) -> str:
        """Return layer after layer; why it ended. One that brings nothing stays in float at first,
        as its neighbour may need it: a tensor is rounded while one int8 layer touches it."""
        weights = {name for name, node in rounded_layers(self.subject.model).items()
                   if node.target in WEIGHTED}  # fmt: skip
        returned: tuple[str, ...] = ()
        for layer in order:
            if weights <= {*returned, layer}:
                continue  # without any int8 layer it is no int8 file
            if self._spent():
                return SPENT
            returned = (*returned, layer)
            if self.met(self._try(returned)):
                self._put_back(returned)
                return MET
        return EXHAUSTED

    def _put_back(self, returned: tuple[str, ...]) -> None:
        """Each layer but the last, which was needed, once into int8 again, the least sensitive
        first; it stays there where the file is still good enough."""
        for layer in reversed(returned[:-1]):
            if self._spent():
                return
            fewer = tuple(name for name in returned if name != layer)
            if self.met(self._try(fewer)):
                returned = fewer

    def _try(self, returned: tuple[str, ...]) -> Trial:
        trial = self.subject.try_out(returned, self.folder / "trial.onnx")
        self.trials.append(trial)
        note = f"{trial.score:.4f} with {len(returned)} layer(s) in float"
        self.observer.progress(len(self.trials), len(self.trials), note)
        return trial

    def _spent(self) -> bool:
        return time.monotonic() >= self.until


def _harmless(sensitivity: Sensitivity) -> float:
    return float("inf") if sensitivity.snr_db is None else sensitivity.snr_db


def search(
    settings: Quantization, model: QuantizedModel, source: Network, data: Dataset, work: Work
) -> tuple[QuantizedModel, dict[str, Any]]:
    """`model` with as many layers in float as `settings.max_drop` takes, and the facts of it.

    `source` is the fp32 network that is quantized. Where the drop cannot be met, the result is the
    best that was tried, and a warning says so: the stage does not fail, for it is the gate that
    decides what ships, on samples that no network was trained on.
    """
    assert settings.max_drop is not None
    started = time.monotonic()
    work.scratch.mkdir(parents=True, exist_ok=True)
    outcome = evaluate(network_forward(source.load()), data.calibration, data.task)
    plain = Trial((), **_scored(outcome))
    fp32 = plain.score
    subject = Subject(settings, float_graph(settings, source, data)[0], model, data)
    looking = Search(
        subject,
        fp32 - settings.max_drop,
        started + settings.time_budget,
        work.scratch,
        work.observer,
    )
    ended, found = looking.run()
    best, met = looking.best, looking.met(looking.best)
    if not met:
        work.observer.warn(_unmet(settings, data, fp32, best, ended))
    facts = {
        "max_drop": settings.max_drop,
        "metric": data.task.metric,
        "samples": len(data.calibration),
        "fp32": fp32,
        "int8": looking.trials[0].score,
        "reached": best.score,
        "bounds": {
            name: trial.bounds
            for name, trial in (("fp32", plain), ("int8", looking.trials[0]), ("reached", best))
        },
        "ended": ended,
        "layers": len(rounded_layers(model)),
        "trials": [asdict(trial) for trial in looking.trials],
        "sensitivity": [asdict(each) for each in found],
        "latency": _latency(subject, source, best, work) if best.returned else None,
    }
    judged = {"max_drop_met": met, "returned": list(best.returned), "search": facts}
    return (subject.mixed(best.returned) if best.returned else model), judged


def _scored(outcome: Outcome) -> dict[str, Any]:
    return scored(outcome.score)


def _latency(subject: Subject, source: Network, best: Trial, work: Work) -> dict[str, Any]:
    files = {name: work.scratch / f"{name}.onnx" for name in ("fp32", "int8", "mixed")}
    export_onnx(source.load(), torch.from_numpy(subject.data.example(2)), files["fp32"])
    subject.write((), files["int8"])
    subject.write(best.returned, files["mixed"])
    return price(files, subject.data.example(16), work)


def _unmet(settings: Quantization, data: Dataset, fp32: float, best: Trial, ended: str) -> str:
    why = {
        SPENT: f"the time_budget of {settings.time_budget:g} s is spent",
        EXHAUSTED: "no further layer can go back to float",
    }
    return (
        f"quantize.max_drop {settings.max_drop:g} is not met: {data.task.metric} {best.score:.4f} "
        f"in ONNX Runtime with {len(best.returned)} layer(s) in float, {fp32:.4f} in fp32, on "
        f"{len(data.calibration)} calibration samples; {why[ended]}"
    )
