"""`engine: onnxruntime` and `exporter: torchscript`, stage by stage: what they are for, and not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdpipe.stages.evaluate import evaluate, session_forward
from kdpipe.stages.export import Export, ExportInputs
from kdpipe.stages.network import Network
from kdpipe.stages.quantize.stage import Quantize, QuantizeInputs
from kdpipe.stages.quantize.trace import Untraceable
from kdpipe.stages.teacher import Teacher, TeacherInputs
from kdpipe.targets.errors import StageError, UsageError
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.zeropoints import unfit_for_tensorrt

FALLBACK = {"mode": "ptq", "engine": "onnxruntime"}
WRITE_THIS = "`quantize: {mode: ptq, engine: onnxruntime}`"
NET = """\
from torch import nn


class Net(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        if x.mean() > 0:
            x = -x
        return self.head(self.conv(x).mean((2, 3)))
"""


@pytest.fixture(scope="module")
def branching(chain, step, recipe, tmp_path_factory) -> Network:
    """A network that takes one way for bright images and another one for dark images."""
    file = tmp_path_factory.mktemp("user") / "net.py"
    file.write_text(NET)
    return step(
        Teacher,
        TeacherInputs(chain.data),
        model=f"{file}:Net",
        train={**recipe, "epochs": 1, "learning_rate": 0.01},
    )


@pytest.fixture(scope="module")
def box(chain, step) -> Network:
    """The exported teacher as a black box."""
    return step(Teacher, TeacherInputs(chain.data), model=str(chain.export.teacher))


def test_the_student_and_its_control_become_files(chain, step) -> None:
    """The outcome is that of the file for CPUs, and the control is quantized alike."""
    inputs = QuantizeInputs(chain.data, chain.teacher, chain.distill)
    quantized = step(Quantize, inputs, **FALLBACK)
    data = chain.data
    for each in (quantized, quantized.control):
        assert sorted(each.files) == ["cpu", "trt"]
        assert unfit_for_tensorrt(each.files["trt"]) == []
        with OnnxRuntime().open(each.files["cpu"]) as session:
            outcome = evaluate(session_forward(session), data.eval, data.task)
        np.testing.assert_array_equal(each.outcome.prediction, outcome.prediction)
        assert each.facts["settings"]["engine"] == "onnxruntime"
        assert each.facts["calibration"]["samples"] == len(data.calibration)

    assert quantized.files["cpu"].read_bytes() != quantized.control.files["cpu"].read_bytes()
    assert quantized.outcome.mean > chain.distill.outcome.mean - 0.1


def test_export_takes_the_files_as_they_are(chain, step, box) -> None:
    """The quantize stage has judged them; they are compared with the fp32 file."""
    quantized = step(Quantize, QuantizeInputs(chain.data, box, None), **FALLBACK)
    exported = step(Export, ExportInputs(chain.data, box, None, quantized), samples=32)
    for flavour, file in quantized.files.items():
        assert exported.student("int8", flavour).read_bytes() == file.read_bytes()
        parity = exported.parity[f"student.int8.{flavour}"]
        assert parity["reference"] == "student.fp32.onnx"
        assert 0 < parity["mean_steps"] < 5
        assert parity["agreement"] > 0.9

    with pytest.raises(StageError, match=r"something else than student\.fp32\.onnx") as error:
        step(Export, ExportInputs(chain.data, box, None, quantized), samples=32, steps_int8=0.01)
    assert "quantization steps in the mean" in error.value.found
    assert "quantize.ranges" in error.value.fix
    assert "export.steps_int8" in error.value.fix


def test_a_black_box_needs_the_other_engine(chain, step, box) -> None:
    """The error is what to type."""
    with pytest.raises(UsageError, match="cannot be quantized by the graph engine") as error:
        step(Quantize, QuantizeInputs(chain.data, box, None), mode="ptq")

    assert WRITE_THIS in error.value.fix


def test_what_cannot_be_traced_needs_the_other_engine(chain, step, branching) -> None:
    """Likewise."""
    with pytest.raises(Untraceable) as error:
        step(Quantize, QuantizeInputs(chain.data, branching, None), mode="ptq")

    assert WRITE_THIS in error.value.fix


def test_a_frozen_branch_that_matters_is_caught(chain, step, branching) -> None:
    """The file knows the branch of the example only, and other samples take the other one."""
    inputs = ExportInputs(chain.data, branching, None, None)
    means = chain.data.example(32).mean((1, 2, 3))
    assert 0 < (means > 0).sum() < 32
    with pytest.raises(StageError, match="than the network it was exported from") as error:
        step(Export, inputs, samples=32, exporter="torchscript")

    assert "Python branches" in error.value.fix


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "qat"}, "cannot train the network: write `mode: ptq`"),
        ({"mode": "qad"}, "cannot train the network: write `mode: ptq`"),
        ({"ranges": "mse"}, "has no ranges mse: write `ranges: percentile`"),
        ({"ranges": {"kind": "entropy", "stride": 8}}, "`ranges.stride` does nothing"),
        ({"weight_bits": 4}, "`weight_bits` does nothing under engine onnxruntime"),
        ({"layers": {"fc": "float"}}, "`layers` does nothing"),
        ({"before_activations": True}, "`before_activations` does nothing"),
        ({"equalize": True}, "`equalize` does nothing"),
        ({"correct_bias": True}, "`correct_bias` does nothing"),
        ({"rounding": "adaround"}, "`rounding` does nothing"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(settings: dict[str, Any], message: str) -> None:
    """When the config is read, with what to type."""
    with pytest.raises(ValueError, match=message):
        Quantize.model_validate({**FALLBACK, **settings})


@pytest.mark.parametrize("settings", [FALLBACK, {"mode": "ptq", "max_drop": 0.01}])
def test_what_makes_and_judges_the_files_is_part_of_the_key(settings: dict[str, Any]) -> None:
    """Another onnxruntime may choose other scales; on another processor it computes other sums."""
    stage, plain = Quantize.model_validate(settings), Quantize(mode="ptq")

    assert "onnxruntime" in stage.distributions()
    assert stage.measures()
    assert "onnxruntime" not in plain.distributions()
    assert not plain.measures()


def test_int8_graphs_are_exported_by_dynamo_all_the_same(chain, step) -> None:
    """Tracing makes nothing of the roundings in them; `exporter` is for the float networks."""
    inputs = ExportInputs(chain.data, chain.teacher, chain.distill, chain.ptq)
    exported = step(Export, inputs, samples=32, exporter="torchscript")

    assert exported.parity["student.int8.cpu"]["reference"] == "PyTorch"
    assert exported.parity["student.fp32"]["max_difference"] < 1e-3
