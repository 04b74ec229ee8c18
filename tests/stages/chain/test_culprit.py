"""Who is blamed, on the files of a real chain: the hop, its layers, and what is written of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from kdpipe.stages.culprit import culprit, load
from kdpipe.stages.export import Exported
from kdpipe.stages.quantize.stage import Quantized
from kdpipe.targets.errors import StageError
from kdpipe.targets.onnxruntime import OnnxRuntime

Scores = NDArray[np.float32]


@pytest.fixture
def step_outputs(chain: Any) -> Any:
    """What the chain left on the way to `onnxruntime-int8`; as if all networks scored alike."""
    outcome = replace(chain.teacher.outcome, score=np.ones(100, np.float32))
    export = SimpleNamespace(
        outcomes={"fp32": outcome, "int8": outcome}, student=chain.export.student
    )
    return SimpleNamespace(
        data=chain.data,
        teacher=SimpleNamespace(outcome=outcome),
        distill=SimpleNamespace(outcome=outcome),
        quantize=SimpleNamespace(outcome=outcome, facts=chain.quantize.facts),
        export=export,
        compile=chain.compiled["onnxruntime-int8"],
        target=chain.targets["onnxruntime-int8"],
    )


def right(count: int) -> Scores:
    return (np.arange(100) < count).astype(np.float32)


def lost(outputs: Any, **scores: Scores) -> Any:
    """The same, but for the scores of these outputs."""
    changed = {}
    for name, score in scores.items():
        one = getattr(outputs, name)
        fields = {**vars(one), "outcome": replace(outputs.teacher.outcome, score=score)}
        changed[name] = SimpleNamespace(**fields)
    return SimpleNamespace(**{**vars(outputs), **changed})


def test_nobody_is_blamed_where_nothing_is_lost(step_outputs: Any, tmp_path: Path) -> None:
    """No layer is compared, and nothing is written."""
    found = culprit(step_outputs, right(100))
    found.save(tmp_path)

    assert (found.hop, found.layers) == (None, None)
    assert found.blame == "no hop alone loses more than the samples can show"
    assert load(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_student_has_no_layers_in_common_with_its_teacher(step_outputs: Any) -> None:
    """The hop is `distill`, and no layer is named."""
    weak = right(60)
    outputs = lost(step_outputs, distill=weak, quantize=weak)
    outputs.export.outcomes = dict.fromkeys(("fp32", "int8"), outputs.quantize.outcome)

    found = culprit(outputs, weak)

    assert found.hop is not None
    assert (found.hop.stage, found.layers) == ("distill", None)
    assert found.blame.endswith(", 100 samples)")


def test_a_loss_at_the_compiler_is_looked_for_in_its_layers(
    step_outputs: Any, tmp_path: Path
) -> None:
    """The real artifact is sound: no layer is blamed, the worst one is told, and all is stored."""
    found = culprit(step_outputs, right(50))
    found.save(tmp_path)

    assert found.hop is not None
    assert found.hop.stage == "compile"
    assert found.layers is not None
    assert found.layers.first is None
    assert "at no single layer (the worst is " in found.blame
    told = load(tmp_path)
    assert told is not None
    assert (told["hop"], told["previous"]) == ("onnxruntime-int8", "onnx int8")
    assert [row["layer"] for row in told["layers"]["rows"]] == [r.layer for r in found.layers.rows]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_wrong_scale_in_the_int8_file_is_found(
    chain: Any, step_outputs: Any, tmp_path: Path
) -> None:
    """The hop is `quantize`; between the fp32 and the int8 file the layer is the changed one."""
    copy = Path(shutil.copytree(chain.export.folder, tmp_path / "export"))
    file = Exported(copy).student("int8", "cpu")
    model = onnx.load(file)
    (node,) = [n for n in model.graph.node if n.name == "stage2.0.body.1.conv"]
    (made,) = [n for n in model.graph.node if node.input[1] in n.output]
    (scale,) = [t for t in model.graph.initializer if t.name == made.input[1]]
    values = 32 * numpy_helper.to_array(scale)
    scale.CopyFrom(numpy_helper.from_array(values, scale.name))
    onnx.save(model, file)
    outputs = lost(step_outputs, quantize=right(50))
    outputs.export = SimpleNamespace(
        outcomes={"int8": outputs.quantize.outcome}, student=Exported(copy).student
    )

    found = culprit(outputs, right(50))

    assert found.hop is not None
    assert found.hop.stage == "quantize"
    assert found.layers is not None
    assert found.layers.trained  # by quantization-aware training, whose weights are its own
    assert found.layers.first is not None
    assert found.layers.first.layer == "stage2.0.body.1.conv"
    assert "at `quantize`, by rounding to int8" in found.blame


def test_equalized_layers_are_left_out(chain: Any, step_outputs: Any) -> None:
    """Their channels are scaled on purpose, and the layers behind them take it back."""
    facts = {**chain.ptq.facts, "equalized": {"stage1.0.body.0.conv": {}}}
    outputs = lost(step_outputs, quantize=right(50))
    outputs.quantize.facts = facts
    outputs.export.outcomes = {"int8": outputs.quantize.outcome}

    found = culprit(outputs, right(50))

    assert found.layers is not None
    assert found.layers.not_compared == {"stage1.0.body.0.conv": "changed on purpose"}
    assert "stage1.0.body.1.conv" in [row.layer for row in found.layers.rows]


class Refusing(OnnxRuntime):
    """Takes no file with further outputs."""

    error: Any = None

    def compile(self, onnx_file: Path, folder: Path) -> Path:
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StageError("too many outputs", found="11"), "too many outputs"),
        (RuntimeError("no more than one\noutput"), "RuntimeError: no more than one"),
    ],
)
def test_a_target_that_refuses_costs_no_measurement(
    step_outputs: Any, error: Exception, told: str
) -> None:
    """The hop is named all the same, and why no layer is."""
    refusing = Refusing(precision="int8", error=error)
    step_outputs.target = refusing

    found = culprit(step_outputs, right(50))

    assert found.hop is not None
    assert found.hop.stage == "compile"
    assert found.blame.endswith(f", its layers could not be compared: {told}")


def test_an_fp32_file_that_lost_has_no_second_file(chain: Any, step_outputs: Any) -> None:
    """Between PyTorch and its ONNX file there is parity, and no comparison of layers."""
    outputs, half = step_outputs, replace(step_outputs.teacher.outcome, score=right(50))
    outputs.export.outcomes = {"fp32": half}
    outputs.target = chain.targets["onnxruntime-fp32"]
    outputs.compile = chain.compiled["onnxruntime-fp32"]

    found = culprit(outputs, right(50))

    assert found.hop is not None
    assert (found.hop.stage, found.layers) == ("export", None)


def test_real_scores_of_the_chain_are_taken(chain: Any) -> None:
    """With the stages' own outputs: the losses are those between their outcomes."""
    target = chain.targets["onnxruntime-int8"]
    outputs = SimpleNamespace(
        data=chain.data,
        teacher=chain.teacher,
        distill=chain.distill,
        quantize=Quantized(chain.quantize.folder),
        export=chain.export,
        compile=chain.compiled[target.id],
        target=target,
    )
    score = chain.measured[target.id].evidence.score

    found = culprit(outputs, np.zeros_like(score))

    assert found.hop is not None
    assert found.hop.hop == target.id
    assert found.hop.before == pytest.approx(chain.export.outcomes["int8"].mean)
    assert found.hop.after == 0
