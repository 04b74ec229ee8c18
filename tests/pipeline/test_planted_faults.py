"""Faults planted into a real chain, hop by hop: the exit code, and a message that names the hop.

One chain is trained once, on coloured digits; every test compiles its files with a target of
another package, found by its entry point, that does one thing wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from sklearn.datasets import load_digits

import kdpipe.stages.onnx_export
import kdpipe.targets.onnxruntime
from kdpipe.pipeline.config import Config, schema
from kdpipe.pipeline.launch import Launch, Selection
from kdpipe.pipeline.rundir import RunDir
from kdpipe.pipeline.store import Store

CHAIN = """\
task: classification
data: {source: {kind: npz, file: digits.npz}, calibration: 128}
teacher: {model: resnet8, arguments: {width: 0.5}, train: {epochs: 6, batch_size: 32, amp: fp32}}
student: {shrink: {width: 0.5}}
distill: {methods: [{kind: kd}], epochs: 6, batch_size: 32, amp: fp32, control: null}
quantize: {mode: ptq}
benchmark:
  {processes: 2, iterations: 5, seconds: 0, warmup_seconds: 0, noise_floor: false,
   memory_processes: 1, samples: 4}
"""
"""Every run of a test adds `targets` and `gate`."""
ACCURATE = "[{metric: accuracy, max-degradation: 0.1}]"
SMALL = "{metric: speedup, min: 0.001, against: fp32}, {metric: int8_fraction, min: 0.1}"
"""In place of the standing rules: such a small network is no faster in int8."""
MODULE = '''
"""ONNX Runtime, but for one fault in what it compiles."""
from typing import Literal
import numpy as np
import onnx
from onnx import helper, numpy_helper
from kdpipe.targets.onnxruntime import OnnxRuntime


class Faulty(OnnxRuntime):
    name: Literal["faulty"] = "faulty"
    fault: Literal["none", "scale", "dead", "bgr", "std", "slow"] = "none"

    def compile(self, onnx_file, folder):
        model = onnx.load(onnx_file)
        FAULTS[self.fault](model, self.precision)
        tampered = folder.with_name(folder.name + ".onnx")
        onnx.save(model, tampered)
        return super().compile(tampered, folder)


def none(model, precision):
    pass


def change(model, name, how):
    """Change a stored tensor in place."""
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    values = numpy_helper.to_array(tensor).copy()
    how(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def read_by(model, layer, place):
    """What a layer reads; nothing where there is no such layer."""
    return [n.input[place] for n in model.graph.node if n.name == layer]


def scale(model, precision):
    """The scale of one int8 weight is 16 times what it should be."""

    def wrong(scales):
        scales *= 16

    for weight in read_by(model, "stage2.0.body.0.conv", 1):
        for node in model.graph.node:
            if weight in node.output:
                change(model, node.input[1], wrong)


def dead(model, precision):
    """Class 3 is never the answer."""

    def wrong(bias):
        bias[3] = -1e4

    for bias in read_by(model, "head", 2):
        change(model, bias, wrong)


def before(model, *nodes):
    """Put nodes from `input` to `changed` before everything else."""
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "input":
                node.input[place] = "changed"
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def constant(model, name, values):
    model.graph.initializer.append(numpy_helper.from_array(values, name))


def bgr(model, precision):
    constant(model, "order", np.array([2, 1, 0]))
    before(model, helper.make_node("Gather", ["input", "order"], ["changed"], axis=1))


def std(model, precision):
    """Pixels divided by a third of their standard deviation, and shifted by one of it."""
    constant(model, "factor", np.float32(3.0))
    constant(model, "shift", np.float32(1.0))
    before(
        model,
        helper.make_node("Mul", ["input", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["changed"]),
    )


def slow(model, precision):
    """The int8 file also does twenty products of large matrices, in float, that change nothing."""
    if precision != "int8":
        return
    output = model.graph.output[0].name
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = "quick"
    constant(model, "side", np.array([128, 128]))
    constant(model, "half", np.eye(128, dtype=np.float32) / 2)
    constant(model, "zero", np.float32(0.0))
    make, nodes = helper.make_node, []
    nodes += [make("ReduceMean", ["input"], ["busy"], keepdims=0)]
    nodes += [make("Expand", ["busy", "side"], ["busy0"])]
    nodes += [make("MatMul", [f"busy{n}", "half"], [f"busy{n + 1}"]) for n in range(20)]
    nodes += [make("ReduceMean", ["busy20"], ["mean_of_it"], keepdims=0)]
    nodes += [make("Mul", ["mean_of_it", "zero"], ["nothing"])]
    nodes += [make("Add", ["quick", "nothing"], [output])]
    model.graph.node.extend(nodes)


FAULTS = {f.__name__: f for f in (none, scale, dead, bgr, std, slow)}
'''


@dataclass(frozen=True)
class Project:
    """A folder with the data and one store."""

    folder: Path

    def run(
        self,
        name: str,
        targets: str,
        gate: str = ACCURATE,
        text: str = CHAIN,
        *,
        start: str | None = None,
        stop: str | None = None,
    ) -> tuple[int, str, dict[str, Any]]:
        """One run: (exit code, last line, results)."""
        config = self.folder / f"{name}.yaml"
        config.write_text(f"{text}targets: {targets}\ngate: {gate}\n")
        launch = Launch(
            Config.read(config),
            Store(self.folder / "store"),
            RunDir(self.folder / "runs" / name),
            Selection(start, stop),
        )
        conclusion, results = launch.run(())
        return conclusion.exit_code, conclusion.line, results


def coloured() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Digits on 16x16 pixels, the higher the class the redder and the less blue."""
    digits = load_digits()
    grey = np.repeat(np.repeat(digits.images / 16, 2, 1), 2, 2)[..., None]
    red = (digits.target / 9)[:, None, None, None]
    images = 255 * grey * np.concatenate([red, np.full_like(red, 0.5), 1 - red], 3)
    return images.astype(np.uint8), digits.target.astype(np.int64)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The chain up to the export, and a package whose entry point names the faulty target.

    Workers that measure find it too, by PYTHONPATH.
    """
    folder, package = tmp_path_factory.mktemp("faults"), tmp_path_factory.mktemp("package")
    images, labels = coloured()
    np.savez(
        folder / "digits.npz",
        train_images=images[:700],
        train_labels=labels[:700],
        eval_images=images[700:1100],
        eval_labels=labels[700:1100],
    )
    (package / "planted_faults_target.py").write_text(MODULE)
    info = package / "planted_faults-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted-faults\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[kdpipe.targets]\nfaulty = planted_faults_target:Faulty\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("OMP_NUM_THREADS", "1")
        schema.cache_clear()
        project = Project(folder)
        code, line, _ = project.run("trained", "[onnxruntime]", stop="export")
        assert code == 0, line
        yield project
    schema.cache_clear()


NUMBERS = r"\(.* -> .*, drop 0\.\d{4}, 95 % bounds 0\.\d{4} to [01]\.\d{4}, 400 samples\)"


def test_without_a_fault_the_chain_passes(project: Project) -> None:
    """The same package, target and rules, and nothing planted: exit 0, and nobody is blamed."""
    rules = f"{ACCURATE[:-1]}, {SMALL}]"
    code, line, results = project.run("none", "[{name: faulty, precision: int8}]", rules)

    assert (code, line.partition(" | ")[0]) == (0, "PASSED"), line
    assert results["artifacts"][0]["accuracy"] > 0.9


# --- scores that are lost, and where ------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "precision", "gate", "layer"),
    [
        ("scale", "int8", ACCURATE, "stage2.0.body.0.conv"),
        ("dead", "fp32", "[{metric: accuracy, max-degradation: 0.05}]", "head"),
        ("bgr", "fp32", ACCURATE, "stem.conv"),
        ("std", "fp32", ACCURATE, "stem.conv"),
    ],
)
def test_a_fault_of_the_compiler(
    project: Project, fault: str, precision: str, gate: str, layer: str
) -> None:
    """Exit 3; the last line names artifact and metric, the hop, and the layer that was changed."""
    target = f"[{{name: faulty, fault: {fault}, precision: {precision}}}]"
    code, line, results = project.run(fault, target, gate)

    assert code == 3
    assert line.startswith(f"FAILED | faulty-{precision}: accuracy drop against the teacher 0.")
    assert "; most of it is lost at `compile`, by what the runtime makes of the file" in line
    assert re.search(NUMBERS, line)
    assert f"first at layer {layer} (signal to noise -" in line
    guilty = results["artifacts"][0]["guilty"]
    assert (guilty["hop"], guilty["previous"]) == (f"faulty-{precision}", f"onnx {precision}")
    assert guilty["layers"]["first"] == layer
    assert {row["samples"] for row in guilty["layers"]["rows"]} == {64}


def test_calibration_on_noise(project: Project) -> None:
    """Exit 3, and the hop is `quantize`: dark frames of a camera say nothing of the pictures."""
    noise = np.random.default_rng(0).integers(0, 4, (128, 16, 16, 3)).astype(np.uint8)
    np.savez(project.folder / "noise.npz", images=noise, labels=np.arange(128) % 2)
    wrong = "calibration: {source: {kind: npz, file: noise.npz}, samples: 128}"
    lines = CHAIN.replace("calibration: 128", wrong).splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith(("student", "distill")))

    code, line, results = project.run(
        "noise", "[onnxruntime]", text=f"{text}student: null\ndistill: null\n"
    )

    assert code == 3
    assert line.startswith("FAILED | onnxruntime-int8: accuracy drop against the teacher 0.")
    assert "; most of it is lost at `quantize`, by rounding to int8 (teacher 0." in line
    assert re.search(NUMBERS, line)
    assert "first at layer stem.conv (" in line
    assert results["artifacts"][0]["guilty"]["stage"] == "quantize"
    hops = {row["hop"]: row["previous"] for row in results["waterfall"]}
    assert hops == {
        "teacher": None,
        "quantized": "teacher",
        "onnx fp32": "teacher",
        "onnx int8": "quantized",
        "onnxruntime-int8": "onnx int8",
    }


# --- what is wrong without a score --------------------------------------------------------------


def test_an_int8_graph_that_is_slower_than_fp32(project: Project) -> None:
    """Exit 3; the last line names artifact, metric and what it is compared with."""
    code, line, _ = project.run(
        "slow",
        "[{name: faulty, fault: slow, precision: int8}]",
        "[{metric: speedup, min: 1, against: fp32}]",
        CHAIN.replace("{processes: 2", "{processes: 3"),
    )

    assert code == 3
    assert line.startswith("FAILED | faulty-int8: speedup over its fp32 twin 0.")
    assert "breaks the limit of at least 1.00x; in float: " in line


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_fallback_to_another_provider(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 1; nothing was measured, and the step names artifact and hop."""
    runtime = kdpipe.targets.onnxruntime
    absent = set(onnxruntime.get_all_providers()) - set(onnxruntime.get_available_providers())
    wanted = [min(absent), "CPUExecutionProvider"]
    monkeypatch.setattr(runtime, "_PROVIDERS", wanted)

    code, line, results = project.run("fallback", "[{name: onnxruntime, precision: int8}]")

    assert code == 1
    assert line == (
        f"FAILED | compile[onnxruntime-int8]: ONNX Runtime fell back: asked for {wanted}"
    )
    assert "found: ['CPUExecutionProvider']" in results["failed"][0]["error"]


def test_a_scale_that_the_export_gets_wrong(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1: the file is not what was quantized, and parity names it, before it is compiled."""
    module, write = kdpipe.stages.onnx_export, kdpipe.stages.onnx_export.write

    def wrong(proto: Any, path: Path) -> None:
        stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        weights = [n for n in proto.graph.node if n.op_type == "DequantizeLinear"]
        for node in [node for node in weights if node.input[0] in stored][:1]:
            scale = numpy_helper.to_array(stored[node.input[1]])
            stored[node.input[1]].CopyFrom(numpy_helper.from_array(16 * scale, node.input[1]))
        write(proto, path)

    monkeypatch.setattr(module, "write", wrong)

    code, line, results = project.run("export", "[onnxruntime]", start="export")

    assert code == 1
    assert line.startswith("FAILED | export: student.int8.cpu.onnx computes something else than")
    assert "quantization steps in the mean" in results["failed"][0]["error"]
