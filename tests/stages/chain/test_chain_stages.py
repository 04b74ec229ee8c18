"""What each stage of a real chain leaves, and how it hangs together with what it read."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from kdpipe.stages.compile import Compile, CompileInputs
from kdpipe.stages.distill.stage import Distill, DistillInputs
from kdpipe.stages.evaluate import evaluate, network_forward
from kdpipe.stages.export import Export, ExportInputs
from kdpipe.stages.quantize.stage import Quantize, QuantizeInputs
from kdpipe.stages.student import Student, StudentInputs
from kdpipe.stages.tasks import Outcome
from kdpipe.stages.teacher import Teacher, TeacherInputs
from kdpipe.targets.digest import digest
from kdpipe.targets.errors import UsageError

ROLES = ["again", "artifact", "fp32", "teacher"]


def bare_predictions(path: Path, inputs: np.ndarray) -> np.ndarray:
    """Predictions of an ONNX file in a plain loop over single samples."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: inputs[i : i + 1]})[0][0] for i in range(len(inputs))]
    return np.stack(rows).argmax(axis=1)


def eval_inputs(chain) -> np.ndarray:
    return chain.data.eval.inputs(np.arange(len(chain.data.eval)))


def same_outcome(a: Outcome, b: Outcome) -> bool:
    return np.array_equal(a.score, b.score) and np.array_equal(a.prediction, b.prediction)


def test_a_network_reads_back_as_it_was_judged(chain) -> None:
    """Loaded from the store, teacher and student do on each sample what their outcome says."""
    for network in (chain.teacher, chain.distill):
        again = evaluate(network_forward(network.load()), chain.data.eval, chain.data.task)

        assert same_outcome(again, network.outcome)
        assert len(network.outcome.score) == 100


def test_a_network_knows_its_size(chain) -> None:
    """Parameters are those of the network; the student is the smaller one."""
    for network in (chain.teacher, chain.distill):
        counted = sum(p.numel() for p in network.load().parameters())

        assert network.facts["parameters"] == counted
        assert network.facts["macs"] > 0
    assert chain.distill.facts["parameters"] < 0.5 * chain.teacher.facts["parameters"]


def test_the_networks_of_this_chain_have_learnt(chain) -> None:
    """Otherwise the comparisons below would compare guesses: all classes occur, most are right."""
    assert len(set(chain.teacher.outcome.prediction)) == 10
    assert chain.teacher.outcome.mean > 0.6
    assert chain.distill.outcome.mean > 0.3
    losses = chain.teacher.facts["losses"]
    assert len(losses) == 8
    assert losses[-1] < 0.5 * losses[0]


def test_pairs_have_both_members(chain) -> None:
    """One pair per seed; the student that ships is the distilled one of the first seed."""
    pairs = chain.distill.pairs

    assert [pair["seed"] for pair in pairs] == [0, 1]
    assert all(set(pair) == {"seed", "distilled", "control"} for pair in pairs)
    assert all(0 <= pair[who] <= 1 for pair in pairs for who in ("distilled", "control"))
    assert pairs[0]["distilled"] == chain.distill.outcome.mean


def test_without_a_control_pairs_have_one_member(chain, step, recipe) -> None:
    """`control: null` trains a single student, which is the one of the full chain, bit for bit."""
    inputs = DistillInputs(chain.data, chain.teacher, chain.student)

    alone = step(Distill, inputs, **recipe, control=None)

    assert [set(pair) for pair in alone.pairs] == [{"seed", "distilled"}]
    assert (alone.folder / "weights.safetensors").read_bytes() == (
        chain.distill.folder / "weights.safetensors"
    ).read_bytes()


def test_distillation_is_what_sets_a_student_apart(chain, step, recipe) -> None:
    """Without methods and with the same seed the student is its own control."""
    inputs = DistillInputs(chain.data, chain.teacher, chain.student)

    plain = step(Distill, inputs, **recipe, methods=[])

    assert plain.pairs[0]["distilled"] == plain.pairs[0]["control"]
    assert plain.pairs[0]["control"] == chain.distill.pairs[0]["control"]
    assert digest(plain.folder / "weights.safetensors") != digest(
        chain.distill.folder / "weights.safetensors"
    )


def test_a_teacher_can_be_loaded_from_its_weights(chain, step) -> None:
    """Saved weights in, the same outcome out, and nothing is trained."""
    weights = chain.teacher.folder / "weights.safetensors"

    loaded = step(
        Teacher,
        TeacherInputs(chain.data),
        model="resnet8",
        arguments={"width": 0.5},
        weights=weights,
    )

    assert same_outcome(loaded.outcome, chain.teacher.outcome)
    sizes = ("parameters", "macs")
    assert loaded.facts == {name: chain.teacher.facts[name] for name in sizes}


def test_an_onnx_file_can_be_the_teacher(chain, step) -> None:
    """The exported teacher as a black box decides as the network, and can teach a student."""
    box = step(Teacher, TeacherInputs(chain.data), model=str(chain.export.teacher))
    student = step(Student, StudentInputs(chain.data, box), model="resnet8")

    taught = step(
        Distill,
        DistillInputs(chain.data, box, student),
        epochs=1,
        batch_size=64,
        control=None,
        amp="fp32",
    )

    assert same_outcome(box.outcome, chain.teacher.outcome)
    assert box.facts["parameters"] is None
    assert box.facts["macs"] is None
    assert box.onnx != chain.export.teacher  # a copy in the store, which the user cannot move
    assert len(taught.pairs) == 1


def test_naming_the_teacher_again_is_refused(chain, step) -> None:
    """A student that is the teacher is not distilled but left out; the message says how."""
    inputs = StudentInputs(chain.data, chain.teacher)

    with pytest.raises(UsageError, match="the student is the teacher itself") as error:
        step(Student, inputs, model="resnet8", arguments={"width": 0.5})

    assert "student: null" in error.value.fix


def test_shrinking_by_nothing_is_refused(chain, step) -> None:
    """So is a `shrink` under which the same layers remain."""
    with pytest.raises(UsageError, match="depth 1 and width 1 changes nothing"):
        step(Student, StudentInputs(chain.data, chain.teacher), shrink={})


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_a_quantized_network_reads_back_as_it_was_judged(chain, mode: str) -> None:
    """Its state goes into a fresh capture of the source, which then decides the same."""
    quantized = chain.ptq if mode == "ptq" else chain.quantize
    model = quantized.load(chain.distill, chain.data)

    again = evaluate(network_forward(model), chain.data.eval, chain.data.task)

    assert same_outcome(again, quantized.outcome)
    assert quantized.facts["mode"] == mode
    assert quantized.facts["calibration"]["samples"] == 64
    assert len(quantized.facts.get("losses", ())) == {"ptq": 0, "qat": 1}[mode]


def test_qat_trains_on(chain) -> None:
    """Weights after quantization-aware training are not those that were calibrated."""
    ptq, qat = (q.load(chain.distill, chain.data) for q in (chain.ptq, chain.quantize))
    pairs = zip(ptq.parameters(), qat.parameters(), strict=True)

    assert not all(torch.equal(a, b) for a, b in pairs)


def test_a_black_box_cannot_be_quantized(chain, step) -> None:
    """It has no layers to put quantizers into; the way out is in the message."""
    box = step(Teacher, TeacherInputs(chain.data), model=str(chain.export.teacher))

    with pytest.raises(UsageError, match="cannot be quantized") as error:
        step(Quantize, QuantizeInputs(chain.data, box, None), mode="ptq")

    assert "quantize: null" in error.value.fix


def test_parity_is_proven_and_small(chain) -> None:
    """Every file is compared with its network on the samples asked for."""
    parity = chain.export.parity

    assert list(parity) == ["teacher", "student.fp32", "student.int8.cpu", "student.int8.trt"]
    for stem, numbers in parity.items():
        limit = 0.02 if "int8" in stem else 1e-4
        assert numbers["samples"] == 32
        assert numbers["output_range"] > 0
        assert numbers["mean_difference"] <= limit * numbers["output_range"]
        assert numbers["mean_difference"] <= numbers["max_difference"]


def test_exported_files_are_judged(chain) -> None:
    """The outcomes of the fp32 and int8 files are those of a bare loop over the samples."""
    outcomes, inputs = chain.export.outcomes, eval_inputs(chain)

    assert set(outcomes) == {"fp32", "int8"}
    assert same_outcome(outcomes["fp32"], chain.distill.outcome)
    for precision, outcome in outcomes.items():
        bare = bare_predictions(chain.export.student(precision, "cpu"), inputs)
        assert np.array_equal(outcome.prediction, bare)


def test_without_a_student_the_teacher_ships(chain, step) -> None:
    """`student: null` and `distill: null`: the exported student is the teacher."""
    exported = step(Export, ExportInputs(chain.data, chain.teacher, None, None), samples=8)

    assert list(exported.parity) == ["teacher", "student.fp32"]
    assert digest(exported.student("fp32", "cpu")) == digest(exported.teacher)
    assert same_outcome(exported.outcomes["fp32"], chain.teacher.outcome)


def test_compiled_files_are_what_their_digests_say(chain) -> None:
    """sha256 and size in compiled.json are those of the file or folder on disk."""
    for id, compiled in chain.compiled.items():
        assert compiled.id == id
        for role, known in compiled.roles.items():
            path = compiled.path(role)
            files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
            assert known["sha256"] == digest(path)
            assert known["size_bytes"] == sum(file.stat().st_size for file in files)


def test_an_int8_artifact_has_an_fp32_twin(chain) -> None:
    """Artifact, twin and teacher go through one runtime; an fp32 artifact is its own twin."""
    roles = {id: sorted(compiled.roles) for id, compiled in chain.compiled.items()}

    assert roles == {
        "onnxruntime-int8": ["artifact", "fp32", "teacher"],
        "openvino-int8": ["artifact", "fp32", "teacher"],
        "onnxruntime-fp32": ["artifact", "teacher"],
    }
    for id in ("onnxruntime-int8", "openvino-int8"):
        fractions = {name: r["int8_fraction"] for name, r in chain.compiled[id].roles.items()}
        assert fractions["artifact"] > 0.5
        assert fractions["fp32"] == fractions["teacher"] == 0


def test_the_file_that_is_measured_is_the_file_that_ships(chain) -> None:
    """measured.json carries the digest of the compiled artifact."""
    for id, measured in chain.measured.items():
        assert measured.meta["artifact"] == chain.compiled[id].roles["artifact"]
        assert measured.meta["artifact"]["sha256"] == digest(chain.compiled[id].path("artifact"))


def test_scores_are_those_of_a_bare_loop(chain) -> None:
    """What the benchmark says of the ONNX file, ONNX Runtime says without kdpipe."""
    evidence = chain.measured["onnxruntime-int8"].evidence
    path = chain.compiled["onnxruntime-int8"].path("artifact")

    predictions = bare_predictions(path, eval_inputs(chain))

    assert np.array_equal(evidence.score, predictions == chain.data.eval.labels)
    assert np.array_equal(evidence.agreement, predictions == chain.teacher.outcome.prediction)
    assert np.array_equal(evidence.teacher_score, chain.teacher.outcome.score)


def test_every_role_is_timed_in_its_own_processes(chain) -> None:
    """Two processes for artifact, twin and teacher, with at least the iterations asked for."""
    for measured in chain.measured.values():
        latency = measured.evidence.latency

        assert sorted(latency) == ROLES
        for timing in latency.values():
            assert len(timing.processes) == 2
            assert all(len(process) >= 5 and (process > 0).all() for process in timing.processes)


def test_single_numbers_are_finite_and_those_of_the_files(chain) -> None:
    """Sizes are the files', parameters the networks', and nothing is NaN."""
    for id, measured in chain.measured.items():
        values, roles = measured.evidence.values, chain.compiled[id].roles

        assert all(math.isfinite(value) for value in values.values())
        assert values["size_bytes"] == roles["artifact"]["size_bytes"]
        assert values["teacher_size_bytes"] == roles["teacher"]["size_bytes"]
        assert values["parameters"] == chain.distill.facts["parameters"]
        assert values["teacher_parameters"] == chain.teacher.facts["parameters"]
        assert values["memory_peak_bytes"] > values["size_bytes"]


def test_no_path_of_the_run_is_stored(chain) -> None:
    """The store may move: artifacts name files relative to their own folder."""
    root = str(chain.export.folder.parent.parent)
    stored = [*chain.compiled.values(), *chain.measured.values(), chain.export, chain.distill]

    for output in stored:
        for path in output.folder.rglob("*.json"):
            assert root not in path.read_text("utf-8"), path


def test_a_stored_output_may_move(chain, step, tmp_path: Path) -> None:
    """A copy of the exported files compiles to the same artifact."""
    moved = Path(shutil.copytree(chain.export.folder, tmp_path / "moved"))
    target = chain.targets["onnxruntime-int8"]

    compiled = step(Compile, CompileInputs(type(chain.export)(moved), target))

    assert compiled.roles == chain.compiled["onnxruntime-int8"].roles
    assert json.loads((compiled.folder / "compiled.json").read_text("utf-8")) == compiled.meta
