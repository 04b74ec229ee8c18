"""The quantize stage on a trained student: its modes and settings, its control, a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from kdpipe.stages import results
from kdpipe.stages.base import Silent, Work
from kdpipe.stages.distill.scheme import Scheme
from kdpipe.stages.evaluate import evaluate, network_forward
from kdpipe.stages.quantize.engine import QuantizedModel
from kdpipe.stages.quantize.fake import WeightQuantizer
from kdpipe.stages.quantize.lesson import lesson
from kdpipe.stages.quantize.prepare import calibrated
from kdpipe.stages.quantize.stage import STATE, Quantize, Quantized, QuantizeInputs
from kdpipe.stages.teacher import Teacher, TeacherInputs
from kdpipe.stages.training import fit
from kdpipe.stages.training.batches import Loader
from kdpipe.stages.training.device import Device
from kdpipe.targets.errors import UsageError

RECIPE = {"epochs": 1, "batch_size": 32, "amp": "fp32"}
CPU = Device("cpu", bf16=False)


@pytest.fixture(scope="module")
def inputs(trained) -> QuantizeInputs:
    """What the stage reads."""
    return QuantizeInputs(trained.data, trained.teacher, trained.distill)


def uncontrolled(inputs: QuantizeInputs) -> QuantizeInputs:
    """The same without a control to quantize too."""
    return QuantizeInputs(inputs.data, inputs.teacher, None)


def bits(model: QuantizedModel) -> list[int]:
    return [m.grid.bits for m in model.modules() if isinstance(m, WeightQuantizer)]


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "ptq", "ranges": {"kind": "percentile", "percent": 99.9}},
        {"mode": "ptq", "ranges": "mse", "before_activations": True},
        {"mode": "ptq", "ranges": "entropy", "equalize": True, "correct_bias": True},
        {"mode": "ptq", "weight_bits": 4, "rounding": {"kind": "adaround", "iterations": 20}},
        {"mode": "qat", "layers": {"stage1.*": 4, "head": "float"}, "freeze": 0.5, **RECIPE},
        {"mode": "qat", "learned_scales": True, **RECIPE},
        {"mode": "qad", "methods": ["kd", {"kind": "at", "taps": ["stages"]}], **RECIPE},
        {"mode": "qad", "methods": ["fitnet"], "teacher": "twin", "supervised": 0, **RECIPE},
    ],
    ids=lambda settings: "-".join(str(word) for word in [*settings][:3]),
)
def test_every_setting_reads_back_as_it_was_judged(step, inputs, settings: dict[str, Any]) -> None:
    """The stored state goes into a fresh capture by the stored settings, and decides the same."""
    quantized = step(Quantize, inputs, **settings, control=False)
    model = quantized.load(inputs.source, inputs.data)

    again = evaluate(network_forward(model), inputs.data.eval, inputs.data.task)

    assert np.array_equal(again.prediction, quantized.outcome.prediction)
    assert quantized.facts["mode"] == settings["mode"]
    assert quantized.outcome.mean > inputs.source.outcome.mean - 0.3
    assert quantized.control is None
    assert ("losses" in quantized.facts) == (settings["mode"] != "ptq")


def test_layers_get_the_bits_that_they_are_given(inputs) -> None:
    """By pattern, of which the longest counts; `float` leaves a layer without a quantizer."""
    settings = Quantize(
        mode="ptq",
        weight_bits=8,
        layers={"stage1.*": 4, "stage1.0.body.1.conv": 8, "head": "float"},
    )
    model, _ = calibrated(settings, inputs.source, inputs.data, 0)
    plain, _ = calibrated(Quantize(mode="ptq"), inputs.source, inputs.data, 0)
    named = dict(model.body.named_modules())

    assert set(bits(plain)) == {8}
    assert bits(model).count(4) == 1
    assert len(bits(model)) == len(bits(plain)) - 1
    assert not any("linear" in name for name in named if name.startswith("quantize"))


def test_a_pattern_that_names_nothing_is_refused(inputs) -> None:
    """With the names that there are; so are two patterns of one length that contradict."""
    with pytest.raises(UsageError, match="no layer is called 'fc'") as error:
        calibrated(Quantize(mode="ptq", layers={"fc": "float"}), inputs.source, inputs.data, 0)
    assert "stem.conv" in error.value.found
    assert "head" in error.value.found

    contrary = Quantize(mode="ptq", layers={"stage1.*": 4, "*.1.conv": 8})
    with pytest.raises(UsageError, match=r"layer 'stage1\.0\.body\.1\.conv' is named twice"):
        calibrated(contrary, inputs.source, inputs.data, 0)


def test_a_pattern_that_counts_for_no_layer_is_refused(inputs) -> None:
    """A full name counts before a pattern, even a longer one; two that agree both count."""
    hidden = Quantize(mode="ptq", layers={"head": 4, "head*": "float"})
    with pytest.raises(UsageError, match=r"quantize\.layers: 'head\*' does nothing") as error:
        calibrated(hidden, inputs.source, inputs.data, 0)
    assert error.value.found.endswith(": head")

    agreed = Quantize(mode="ptq", layers={"stage1.*": 4, "*.1.conv": 4})
    model, _ = calibrated(agreed, inputs.source, inputs.data, 0)
    assert 4 in bits(model)


LINEAR = """\
from torch import nn


def linear(in_channels, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 256, classes))
"""


def test_equalizing_nothing_is_told(trained, step, recipe, tmp_path: Path) -> None:
    """With what is in the way, here in the only layer."""
    (tmp_path / "net.py").write_text(LINEAR)
    model = f"{tmp_path / 'net.py'}:linear"
    network = step(Teacher, TeacherInputs(trained.data), model=model, train=recipe)
    told: list[str] = []

    class Told(Silent):
        def warn(self, text: str) -> None:
            told.append(text)

    inputs, work = QuantizeInputs(trained.data, network, None), Work(tmp_path, tmp_path, Told())
    Quantize(mode="ptq", equalize=True).run(inputs, work)

    assert told == ["quantize.equalize changed no layer; in the way: the network's output of 1"]
    assert Quantized(tmp_path).facts["not_equalized"] == {"1": "the network's output"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "ptq", "freeze": 0.5}, "`freeze` does nothing under mode ptq"),
        ({"mode": "ptq", "learned_scales": True}, "it is for qat and qad"),
        ({"mode": "qat", "rounding": "adaround"}, "it is for ptq"),
        ({"mode": "qat", "correct_bias": True}, "it is for ptq"),
        ({"mode": "qat", "methods": ["at"]}, "it is for qad"),
        ({"mode": "qat", "teacher": "twin"}, "it is for qad"),
        ({"mode": "none", "equalize": True}, "does nothing under mode none"),
        ({"mode": "ptq", "seed": 1}, "without `rounding: adaround`"),
        ({"mode": "qat", "learned_scales": True, "freeze": 0.5}, "training moves them"),
        ({"mode": "qad", "methods": []}, "use mode qat"),
        ({"mode": "qad", "methods": ["cs_kd"], "teacher": "twin"}, "none of the `methods`"),
        ({"mode": "qad", "supervised": 0, "supervised_from": 1}, "under `supervised: 0`"),
        ({"mode": "qad", "supervised": 0, "class_weights": "balanced"}, "under `supervised: 0`"),
        ({"mode": "qad", "supervised_from": 2}, "below the 2 `epochs`"),
    ],
)
def test_a_setting_without_effect_is_refused(settings: dict[str, Any], words: str) -> None:
    """When the config is read."""
    with pytest.raises(ValidationError, match=words):
        Quantize.model_validate(settings)


@pytest.mark.parametrize("method", ["simkd", "one"])
def test_methods_that_rebuild_the_student_are_refused(method: str) -> None:
    """A captured graph has no head to hand over, and no stage to copy."""
    settings = Quantize.model_validate({"mode": "qad", "methods": [method]})

    with pytest.raises(UsageError, match=f"'{method}' needs a student that can still be rebuilt"):
        settings.check()


def test_a_method_that_starts_too_late_is_refused() -> None:
    """As in the distill stage: its term would never count."""
    settings = Quantize.model_validate(
        {"mode": "qad", "epochs": 2, "methods": [{"kind": "kd", "start": 2}]}
    )

    with pytest.raises(UsageError, match=r"quantize\.methods: a method starts after"):
        settings.check()


def test_the_twin_and_the_teacher_teach_different_things(step, inputs) -> None:
    """Same seed and data: only who teaches differs, and so do the weights."""
    recipe = {"mode": "qad", "supervised": 0, **RECIPE}
    states = [
        load_file(step(Quantize, inputs, **recipe, teacher=who, control=False).folder / STATE)
        for who in ("teacher", "twin")
    ]

    assert states[0].keys() == states[1].keys()
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_control_is_quantized_alike(step, inputs, trained) -> None:
    """As if it were the student: the same settings, samples and seed; its score stands beside."""
    both = step(Quantize, inputs, mode="qat", **RECIPE)
    control = trained.distill.control
    alone = step(Quantize, QuantizeInputs(trained.data, control, None), mode="qat", **RECIPE)

    assert control is not None
    assert control.outcome.mean == trained.distill.pairs[0]["control"]
    assert both.control is not None
    assert np.array_equal(both.control.outcome.score, alone.outcome.score)
    assert both.control.facts == {**alone.facts, "settings": both.facts["settings"]}


def test_results_say_what_int8_costs_each(step, inputs, trained) -> None:
    """Before and after, of the student and of its control, with the paired drop between."""
    quantized = step(Quantize, inputs, mode="ptq")
    outputs = {
        "data": trained.data,
        "teacher": trained.teacher,
        "student": trained.student,
        "distill": trained.distill,
        "quantize": quantized,
    }
    found = results.collect(outputs)["quantized"]
    pairs = {
        "student": (trained.distill, quantized),
        "control": (trained.distill.control, quantized.control),
    }

    assert found["mode"] == "ptq"
    assert found["calibration"]["samples"] == 64
    for name, (before, after) in pairs.items():
        means = [float(one.outcome.score.mean()) for one in (before, after)]
        assert [found[name]["fp32"], found[name]["int8"]] == pytest.approx(means)
        assert found[name]["drop"]["mean"] == pytest.approx(means[0] - means[1])
    without = results.collect(
        {**outputs, "quantize": step(Quantize, inputs, mode="ptq", control=False)}
    )
    assert without["quantized"]["control"] is None


def test_a_control_that_is_not_there_is_refused(step, trained) -> None:
    """`control: true` asks for something; left out, nothing is missed."""
    alone = QuantizeInputs(trained.data, trained.teacher, None)

    with pytest.raises(UsageError, match="there is no control to quantize"):
        step(Quantize, alone, mode="ptq", control=True)
    assert step(Quantize, alone, mode="ptq").control is None


class Killing(Loader):
    """Ctrl-C instead of one batch."""

    kill: tuple[int, int] | None = None

    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """All batches until the one named by `kill`."""
        for step, batch in enumerate(super().epoch(number, start), start):
            if (number, step) == self.kill:
                raise KeyboardInterrupt
            yield batch


STEP = np.random.default_rng(7)
"""Where each kill below strikes is drawn, once and for all."""


@pytest.mark.parametrize(
    ("settings", "kill"),
    [
        ({"mode": "qat", "freeze": 0.6}, (0, int(STEP.integers(1, 6)))),
        ({"mode": "qat", "freeze": 0.6}, (1, int(STEP.integers(2, 6)))),
        ({"mode": "qat", "learned_scales": True, "ema": 0.9}, (1, int(STEP.integers(0, 6)))),
        (
            {"mode": "qad", "methods": ["kd", {"kind": "fitnet", "taps": ["last"]}], "freeze": 0.4},
            (0, int(STEP.integers(1, 6))),
        ),
    ],
    ids=["ranges that move", "ranges that stand still", "learned scales", "connectors"],
)
def test_a_kill_at_any_step_loses_nothing(inputs, tmp_path: Path, settings, kill) -> None:
    """With a checkpoint after every step: killed at a random one and resumed is never killed."""
    stage = Quantize.model_validate({**settings, "epochs": 2, "batch_size": 32, "amp": "fp32"})

    def train(name: str, kill: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
        model, _ = calibrated(stage, inputs.source, inputs.data, 0)
        torch.manual_seed(0)
        nodes, edges = lesson(stage, model, inputs.source, inputs.teacher, inputs.data)
        loader = Killing(inputs.data.train, 32, 0, CPU, augment=inputs.data.augment)
        loader.kill = kill
        scheme = Scheme(nodes, edges, loader.sample(), epochs=2, steps=len(loader))
        try:
            fit(scheme, loader, stage, tmp_path / name, Silent(), seconds=0)
        finally:
            scheme.close()
        return {key: value.clone() for key, value in scheme.learned().items()}

    whole = train("whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train("killed.pt", kill)
    resumed = train("killed.pt")

    assert whole.keys() == resumed.keys()
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


def test_a_killed_stage_resumes_in_its_control(inputs, tmp_path: Path) -> None:
    """Killed while the control trains: run again, every file is that of a run without a kill."""

    class Killed(Silent):
        def progress(self, done: int, total: int, note: str = "") -> None:
            if note.startswith("control"):
                raise KeyboardInterrupt

    stage = Quantize.model_validate({"mode": "qat", "freeze": 0.5, **RECIPE, "epochs": 2})

    def run(name: str, observer: Any) -> dict[str, bytes]:
        out = tmp_path / f"{name}-{type(observer).__name__}"
        scratch = tmp_path / name
        out.mkdir()
        scratch.mkdir(exist_ok=True)
        stage.run(inputs, Work(out, scratch, observer))
        files = (path for path in out.rglob("*") if path.suffix in (".json", ".safetensors"))
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}

    whole = run("whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        run("killed", Killed())
    resumed = run("killed", Silent())

    assert set(whole) == {
        "facts.json", STATE, "control/facts.json", f"control/{STATE}",
    }  # fmt: skip
    assert resumed == whole


def test_ranges_follow_the_batches_until_they_freeze(inputs) -> None:
    """Tracked scales move in the first half of the training, and stand still in the second."""
    stage = Quantize.model_validate({"mode": "qat", "freeze": 0.5, **RECIPE, "epochs": 2})
    model, _ = calibrated(stage, inputs.source, inputs.data, 0)
    nodes, edges = lesson(stage, model, inputs.source, inputs.teacher, inputs.data)
    loader = Loader(inputs.data.train, 32, 0, CPU, augment=inputs.data.augment)
    scheme = Scheme(nodes, edges, loader.sample(), epochs=2, steps=len(loader))
    scales: list[list[float]] = []
    with torch.no_grad():
        for epoch in (0, 1):
            for number, batch in enumerate(loader.epoch(epoch)):
                scheme(batch, epoch + number / len(loader))
                scales.append([float(q.scale) for q in model.activations()])
    scheme.close()

    half = len(loader)
    assert all(a != b for a, b in pairwise(scales[:half]))
    assert all(row == scales[half - 1] for row in scales[half:])


def test_facts_name_the_calibration_samples(step, inputs) -> None:
    """Origin, seed and number, and a digest that anybody can take of the ids."""
    facts = step(Quantize, uncontrolled(inputs), mode="ptq").facts
    ids = inputs.data.calibration.ids

    assert facts["calibration"] == {
        "origin": "train",
        "seed": 0,
        "samples": 64,
        "ids_sha256": hashlib.sha256("".join(f"{id}\n" for id in ids).encode()).hexdigest(),
    }
    assert facts["settings"] == Quantize(mode="ptq").model_dump(mode="json")
