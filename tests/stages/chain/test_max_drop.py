"""`quantize.max_drop`: layers that go back to float, on a trained student with planted faults."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdpipe.stages import results
from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.evaluate import evaluate, network_forward, session_forward
from kdpipe.stages.models import weights
from kdpipe.stages.network import WEIGHTS, Network
from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.emit import emit
from kdpipe.stages.quantize.layerwise import pair
from kdpipe.stages.quantize.prepare import calibrated, float_graph
from kdpipe.stages.quantize.search import EXHAUSTED, MET, SPENT, Search, Subject
from kdpipe.stages.quantize.sensitivity import rounded_layers
from kdpipe.stages.quantize.stage import STATE, Quantize, QuantizeInputs
from kdpipe.stages.tasks.classification import Classification
from kdpipe.targets.errors import UsageError
from kdpipe.targets.onnxruntime import OnnxRuntime

BROKEN = ("stage1.0.body.0.conv", "stage1.0.body.1.conv")
"""Two neighbours; the faults lie in the second, or between them."""


def heavy_weights(network: Any) -> None:
    """Weights that meet nothing but zeros, so large that all others of their channel round to 0."""
    first, second = network.stage1[0].body
    first.norm.weight[0], first.norm.bias[0] = 0.0, -1.0  # dead behind the ReLU
    second.conv.weight[:, 0] = 1000.0


def outlier(network: Any) -> None:
    """A channel that nobody reads, so large that the scale of its tensor rounds all others to 0."""
    first, second = network.stage1[0].body
    first.norm.weight[0], first.norm.bias[0] = 0.0, 3e4
    second.conv.weight[:, 0] = 0.0


@pytest.fixture(scope="module")
def plant(trained, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Network]:
    """plant(fault): the trained teacher with a fault that is none in float."""

    def planted(fault: Callable[[Any], None]) -> Network:
        folder = tmp_path_factory.mktemp("planted") / "network"
        shutil.copytree(trained.teacher.folder, folder)
        network = trained.teacher.load()
        with torch.no_grad():
            fault(network)
        weights.save(network, folder / WEIGHTS)
        return Network(folder)

    return planted


def subject(source: Network, trained: Any, **settings: Any) -> Subject:
    """A calibrated network to search in."""
    stage = Quantize.model_validate({"mode": "ptq", "max_drop": 0.02, **settings})
    model, _ = calibrated(stage, source, trained.data, 0)
    return Subject(stage, float_graph(stage, source, trained.data)[0], model, trained.data)


def metric(source: Network, trained: Any) -> float:
    """Accuracy in fp32 on the calibration samples."""
    data = trained.data
    return evaluate(network_forward(source.load()), data.calibration, data.task).mean


def looking(of: Subject, least: float, folder: Path, until: float = math.inf) -> Search:
    return Search(of, least, until, folder, Silent())


class Listening(Silent):
    """Keeps warnings and notes; a note that has `kill` in it is answered by Ctrl-C."""

    def __init__(self, kill: str = "") -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.kill = kill

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.notes.append(note)
        if self.kill and self.kill in note:
            raise KeyboardInterrupt

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def run(inputs: QuantizeInputs, folder: Path, observer: Silent, **settings: Any) -> dict[str, Any]:
    """The facts of a run of the stage; run again in the same folder it resumes."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir(exist_ok=True)
    Quantize.model_validate(settings).run(
        inputs, Work(folder / "out", folder / "scratch", observer)
    )
    return json.loads((folder / "out/facts.json").read_text())


@pytest.fixture(scope="module")
def met(step, trained, plant) -> tuple[Network, Any]:
    """A network with one layer that hurts, and the output of the stage after a training that
    hardly moves it; test_max_drop.py of the pipeline has one that is only calibrated."""
    source = plant(heavy_weights)
    settings = {"mode": "qad", "methods": ["kd"], "teacher": "twin", "max_drop": 0.02}
    settings |= {"epochs": 1, "batch_size": 64, "amp": "fp32", "learning_rate": 1e-7}
    return source, step(Quantize, QuantizeInputs(trained.data, source, None), **settings)


def test_the_layer_that_hurts_goes_back_and_no_other(met, trained, tmp_path: Path) -> None:
    """In the facts, and in what ONNX Runtime runs: that layer in float, all others in int8."""
    source, quantized = met
    found = quantized.facts["search"]
    file = tmp_path / "int8.onnx"
    example = torch.from_numpy(trained.data.example(2))
    export_onnx(emit(quantized.load(source, trained.data), "cpu"), example, file)
    audit = OnnxRuntime().audit(file)
    with OnnxRuntime().open(file) as session:
        data = trained.data
        score = evaluate(session_forward(session), data.calibration, data.task).mean

    assert quantized.facts["returned"] == [BROKEN[1]]
    assert audit.float_kernels == (BROKEN[1],)
    assert len(audit.layers) == found["layers"] == 10
    assert found["int8"] < 0.5
    assert quantized.facts["max_drop_met"]
    assert score == found["reached"] >= metric(source, trained) - 0.02
    assert found["fp32"] == metric(source, trained)
    assert min(found["sensitivity"], key=lambda each: each["snr_db"])["layer"] == BROKEN[1]


def test_a_mixed_network_reads_back_as_it_was_judged(met, trained) -> None:
    """On the eval split, from the stored state and the layers in the facts."""
    source, quantized = met
    model = quantized.load(source, trained.data)
    again = evaluate(network_forward(model), trained.data.eval, trained.data.task)

    assert np.array_equal(again.prediction, quantized.outcome.prediction)
    assert len(rounded_layers(model)) == 9


def test_results_tell_layers_and_their_price(met, trained) -> None:
    """All of the facts, and ratios between files that were timed in turns."""
    source, quantized = met
    outputs = {"data": trained.data, "teacher": source, "quantize": quantized}
    search = results.collect(outputs)["quantized"]["search"]
    latency = search["latency"]
    mean = latency["mean_ms"]

    assert search["returned"] == [BROKEN[1]]
    assert search["max_drop_met"] is True
    assert search["samples"] == len(trained.data.calibration) == 64
    assert set(mean) == {"fp32", "int8", "mixed"}
    assert latency["processes"] == 5
    for over, files in (("fp32", ("int8", "mixed")), ("int8", ("mixed",))):
        for name in files:
            ratio = latency[f"speedup_{over}"][name]
            assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
            assert ratio["ratio"] > 0
    assert latency["machine"]["cores"] >= 1


def test_neighbours_around_an_outlier_go_back_together(plant, trained, tmp_path: Path) -> None:
    """The tensor between them is rounded until both are in float; the first alone brings nothing,
    and neither can be put back."""
    source = plant(outlier)
    search = looking(subject(source, trained), metric(source, trained) - 0.02, tmp_path)

    ended, _ = search.run()

    assert ended == MET
    assert set(search.best.returned) == set(BROKEN)
    assert [len(trial.returned) for trial in search.trials] == [0, 1, 2, 1]
    assert [search.met(trial) for trial in search.trials] == [False, False, True, False]


def test_a_layer_that_brings_nothing_is_put_back(plant, trained, tmp_path: Path) -> None:
    """Each layer but the last is tried in int8 once more."""
    source = plant(heavy_weights)
    search = looking(subject(source, trained), metric(source, trained) - 0.02, tmp_path)

    assert search.descend(["head", BROKEN[1], "stem.conv"]) == MET
    tried = [trial.returned for trial in search.trials]
    assert tried == [("head",), ("head", BROKEN[1]), (BROKEN[1],)]
    assert search.best.returned == (BROKEN[1],)


def test_sensitivity_is_that_of_a_network_with_one_int8_layer(plant, trained) -> None:
    """Against a network that has no quantizer elsewhere, and the formula in numpy."""
    of = subject(plant(heavy_weights), trained, layers={"stem.conv": "float"})
    data = trained.data
    found = of.sensitivities()
    assert found is not None
    names = [each.layer for each in found]
    x = torch.from_numpy(data.calibration.inputs(np.arange(len(data.calibration))))

    assert names == list(rounded_layers(of.model))
    assert "stem.conv" not in names
    for each in (found[1], found[-1]):
        alone = of.mixed([name for name in names if name != each.layer])
        with torch.no_grad():
            clean, rounded = (net(x).double().numpy() for net in (of.graph, alone))
        noise = ((rounded - clean) ** 2).sum()
        assert each.snr_db == pytest.approx(10 * np.log10((clean**2).sum() / noise), abs=1e-3)
        right = rounded.argmax(1) == data.calibration.labels
        assert each.score == pytest.approx(right.mean())


def test_sensitivity_leaves_the_network_as_it_was(plant, trained) -> None:
    """Its state, and what it computes."""
    of = subject(plant(heavy_weights), trained, rounding={"kind": "adaround", "iterations": 5})
    x, before = torch.from_numpy(trained.data.example(4)), copy.deepcopy(of.model.state_dict())
    with torch.no_grad():
        output = of.model(x)
        of.sensitivities()
        assert torch.equal(of.model(x), output)
    assert all(torch.equal(before[name], value) for name, value in of.model.state_dict().items())


def test_what_was_fitted_to_the_rounding_is_taken_back(trained) -> None:
    """AdaRound's weights of a returned layer are the trained ones again, those of others are not;
    biases are corrected for what is still rounded."""
    of = subject(
        trained.teacher,
        trained,
        weight_bits=4,
        rounding={"kind": "adaround", "iterations": 20},
        correct_bias=True,
    )
    mixed = of.mixed([BROKEN[1]])
    paths = {layer.name: layer.weight for layer in pair(mixed, of.graph)}
    stem, back = paths["stem.conv"], paths[BROKEN[1]]
    exact, whole = of.graph.state_dict(), of.model.body.state_dict()
    inputs = torch.from_numpy(
        trained.data.calibration.inputs(np.arange(len(trained.data.calibration)))
    )

    assert torch.equal(mixed.body.state_dict()[back], exact[back])
    assert not torch.equal(whole[back], exact[back])
    assert torch.equal(mixed.body.state_dict()[stem], whole[stem])
    with torch.no_grad():
        means = [net(inputs).mean(0) for net in (of.graph, mixed)]
    assert torch.allclose(*means, atol=1e-3)


def test_without_a_budget_it_stops_at_once(plant, trained, tmp_path: Path) -> None:
    """After the one file that must be judged, and says so; the network stays in int8."""
    inputs, told = QuantizeInputs(trained.data, plant(heavy_weights), None), Listening()

    facts = run(inputs, tmp_path, told, mode="ptq", max_drop=0.02, time_budget=0)

    assert (facts["max_drop_met"], facts["returned"]) == (False, [])
    assert facts["search"]["ended"] == SPENT
    assert [trial["returned"] for trial in facts["search"]["trials"]] == [[]]
    assert facts["search"]["sensitivity"] == []
    assert facts["search"]["latency"] is None
    (warning,) = told.warnings
    assert "max_drop 0.02 is not met" in warning
    assert "the time_budget of 0 s is spent" in warning


def test_a_budget_that_ends_among_the_layers_ends_there(plant, trained) -> None:
    """Sensitivities of some layers only are none."""
    of = subject(plant(heavy_weights), trained)

    assert of.sensitivities(until=time.monotonic() - 1) is None


def test_a_drop_that_cannot_be_met_keeps_the_best(plant, trained, tmp_path: Path) -> None:
    """Both neighbours of the outlier would have to go, but then no int8 layer is left."""
    names = list(rounded_layers(subject(trained.teacher, trained).model))
    floats = {name: "float" for name in names if name not in BROKEN}
    inputs, told = QuantizeInputs(trained.data, plant(outlier), None), Listening()

    facts = run(inputs, tmp_path, told, mode="ptq", max_drop=0.02, layers=floats)

    search = facts["search"]
    assert not facts["max_drop_met"]
    assert search["ended"] == EXHAUSTED
    assert len(search["trials"]) == 2
    assert search["reached"] == max(trial["score"] for trial in search["trials"])
    assert "no further layer can go back to float" in told.warnings[0]


def test_a_killed_search_starts_again_but_not_the_training(trained, tmp_path: Path) -> None:
    """The training is read from its checkpoint; the output is that of a run without a kill."""
    inputs = QuantizeInputs(trained.data, trained.teacher, None)
    settings = {"mode": "qat", "epochs": 1, "batch_size": 32, "amp": "fp32", "max_drop": 0.5}
    whole = run(inputs, tmp_path / "whole", told := Listening(), **settings)
    assert any("loss" in note for note in told.notes)
    assert whole["max_drop_met"]

    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "killed", Listening(kill="in float"), **settings)
    resumed = run(inputs, tmp_path / "killed", told := Listening(), **settings)

    assert resumed == whole
    assert not any("loss" in note for note in told.notes)
    states = [tmp_path / name / "out" / STATE for name in ("whole", "killed")]
    assert states[0].read_bytes() == states[1].read_bytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "ptq", "time_budget": 5}, "`time_budget` does nothing without `max_drop`"),
        ({"mode": "none", "max_drop": 0.01}, "`max_drop` does nothing under mode none"),
        (
            {"mode": "ptq", "engine": "onnxruntime", "max_drop": 0.01},
            "`max_drop` does nothing under engine onnxruntime",
        ),
        ({"mode": "ptq", "max_drop": 1.0}, "less than 1"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], words: str) -> None:
    """When the config is read."""
    with pytest.raises(ValidationError, match=words):
        Quantize.model_validate(settings)


def test_calibration_samples_without_labels_are_refused(trained, step, tmp_path: Path) -> None:
    """Before anything is calibrated or trained."""
    images = np.random.default_rng(0).integers(0, 255, (8, 16, 16), np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(8) % 2)
    own = {"source": {"kind": "npz", "file": str(tmp_path / "own.npz")}, "samples": 8}
    settings = {"source": "digits", "image_size": 16, "max_train": 100, "max_eval": 50}
    data = step(Data, DataInputs(Classification()), **settings, calibration=own)

    with pytest.raises(UsageError, match="needs calibration samples with labels"):
        run(QuantizeInputs(data, trained.teacher, None), tmp_path, Silent(), max_drop=0.01)
