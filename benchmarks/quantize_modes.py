"""What each way to int8 costs and gives on real images, network by network, in two runtimes.

python benchmarks/quantize_modes.py --data folder/of/fashion-mnist --out quantize.json
python benchmarks/quantize_modes.py --show quantize.json    # the tables again, of what is finished

Each network is trained once in fp32. From that one student start all ways: calibrated (ptq),
trained on with labels (qat), or with labels and the fp32 student as the teacher (qad), and ONNX
Runtime's own static quantization. A drop is paired, sample by sample of the whole eval split, with
the fp32 student in PyTorch. A speedup is over the fp32 file of the same student in the same
runtime, in fresh processes that take turns. Intervals are two-sided, 95 %.

More training can help by itself. The way `fp32-on` is the recipe of qat without rounding: what both
gain is due to training, and where qat stands below it, that is the price of int8.

Weights of 4 bits stay int8 in the file, so they have no speed or size of their own: accuracy is
that of PyTorch, and what matters is the share of ptq's loss that qat and adaround give back.
CPU seconds are those of the quantize stage, judging the eval split included. Results are written
after each way; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from quantize_tables import document

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.graph import Edge, Node
from kdpipe.stages.evaluate import evaluate, session_forward
from kdpipe.stages.network import Network, judge
from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.emit import emit
from kdpipe.stages.quantize.stage import Quantize, Quantized, QuantizeInputs
from kdpipe.stages.statistics import latency_ratio, paired_drop
from kdpipe.stages.supervision import supervised
from kdpipe.stages.tasks import TASKS, Outcome
from kdpipe.stages.teacher import Teacher, TeacherInputs
from kdpipe.stages.training import train
from kdpipe.targets.base import Target
from kdpipe.targets.digest import size
from kdpipe.targets.errors import KdpipeError, UsageError
from kdpipe.targets.fingerprint import fingerprint
from kdpipe.targets.measure import Job, time_processes
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

EACH_SIDE = 0.975
"""Confidence of each bound of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Net:
    """An architecture, and the recipes that train it: in fp32, then on at 8 and at 4 bits."""

    model: str
    arguments: Mapping[str, Any]
    fp32: Mapping[str, Any]
    on8: Mapping[str, Any] = field(default_factory=lambda: {"learning_rate": 1e-4})
    on4: Mapping[str, Any] = field(default_factory=lambda: {"learning_rate": 3e-4})


_ADAMW = {"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05}
NETS: Mapping[str, Net] = {
    "resnet8": Net("resnet8", {"width": 1.5}, {"learning_rate": 0.1}),
    "wide": Net("resnet8", {"width": 4.0}, {"learning_rate": 0.1}),
    "mobilenet": Net("mobilenet", {"width": 0.5, "depth": 0.3}, {"learning_rate": 0.1}),
    "vit": Net("vit", {"width": 2.0, "patch": 7}, _ADAMW),
}

ON = "fp32-on"
WAYS: Mapping[str, Mapping[str, Any]] = {
    ON: {"mode": "qat"},
    "ptq": {"mode": "ptq"},
    "qat": {"mode": "qat"},
    "qad": {"mode": "qad", "teacher": "twin"},
    "ort-ptq": {"mode": "ptq", "engine": "onnxruntime"},
    "w4-ptq": {"mode": "ptq", "weight_bits": 4},
    "w4-adaround": {
        "mode": "ptq",
        "weight_bits": 4,
        "rounding": {"kind": "adaround", "iterations": 200},
    },
    "w4-qat": {"mode": "qat", "weight_bits": 4},
}
"""Settings of the quantize stage, to which `Net` adds the recipe where there is training."""

RUNTIMES: tuple[Target, ...] = (OnnxRuntime(precision="int8"), OpenVino(precision="int8"))


def main() -> None:
    """Train and measure what is missing, then print the tables."""
    options = _options()
    if options.show:
        print(document(json.loads(options.show.read_text("utf-8"))))
        return
    torch.set_num_threads(options.threads)
    bench = _Bench(options)
    for net in options.nets:
        for way in options.modes:
            bench.fill(net, way)
    print(document(bench.results))


class _Bench:
    """The results so far, in a file, and the means to fill in the rest."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.folder = self.out.with_suffix("")
        self.options = options
        self.results = self._read()
        self._write()  # the folder never stands without the settings it was made by
        data = Data(
            source={"kind": "idx", "folder": str(options.data)},
            augment={"shift": 2, "flip": True},
            drop_twins=True,
            max_train=options.train,
            max_eval=options.eval,
        )
        task = TASKS[0].model_validate({})
        self.data, _ = self._stage(self.folder / "data", data, DataInputs(task), Dataset)
        self.feed = self.folder / "feed.npy"
        np.save(self.feed, self.data.example(min(64, len(self.data.eval))))

    def fill(self, name: str, way: str) -> None:
        """Quantize and measure one network in one way, unless that was done before."""
        student = self._student(name)
        cells = self.results["nets"][name]["ways"]
        if way in cells:
            return
        try:
            found = self._cell(name, way, student)
        except KdpipeError as error:
            found = {"error": _line(error)}
        cells[way] = found
        self._write()
        print(name, way, found, flush=True)

    def _student(self, name: str) -> Network:
        """The trained fp32 network that every way starts from."""
        net = NETS[name]
        recipe = {**net.fp32, "epochs": self.options.epochs, "clip_norm": 5.0}
        stage = Teacher(model=net.model, arguments=net.arguments, train=recipe)
        inputs, folder = TeacherInputs(self.data), self.folder / name / "fp32"
        student, seconds = self._stage(folder, stage, inputs, Network)
        what = f"{net.model} {dict(net.arguments)}, {student.facts['parameters']:,} parameters"
        self.results["nets"].setdefault(
            name, {"what": what, "score": student.outcome.mean, "cpu_s": seconds, "ways": {}}
        )
        assert isinstance(student, Network)
        return student

    def _cell(self, name: str, way: str, student: Network) -> dict[str, Any]:
        """What the quantized network does in PyTorch, and its int8 file in each runtime."""
        stage = Quantize(**WAYS[way], **self._recipe(NETS[name], way))
        folder = self.folder / name / way
        if way == ON:
            return self._trained_on(stage, student, folder)
        inputs = QuantizeInputs(self.data, student, None)
        quantized, seconds = self._stage(folder / "quantize", stage, inputs, Quantized)
        found: dict[str, Any] = {"bits": stage.weight_bits, "cpu_s": seconds, "runtimes": {}}
        found |= _against(student.outcome, quantized.outcome)
        if stage.weight_bits == 8:
            files = {
                "fp32": self._file(student.load(), folder.parent / "fp32.onnx"),
                "int8": quantized.files.get("cpu") or self._emitted(quantized, student, folder),
            }
            found["runtimes"] = {
                target.name: self._runtime(folder / target.name, files, student, target)
                for target in RUNTIMES
            }
        return found

    def _trained_on(self, stage: Quantize, student: Network, folder: Path) -> dict[str, Any]:
        """The graph that qat would round, trained by the same recipe without any rounding."""
        rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started = time.process_time()
        graph = capture(student.load(), torch.from_numpy(self.data.example(2)))
        torch.manual_seed(stage.seed)
        nodes, edges = {"student": Node(graph)}, [Edge("student", supervised(stage, self.data))]
        train(nodes, edges, stage, self.data, folder / "checkpoint.pt", Silent())
        outcome = judge(graph, self.data)
        seconds = time.process_time() - started
        found = _against(student.outcome, outcome)
        return {"bits": 32, "cpu_s": seconds, "runtimes": {}, **found}

    def _recipe(self, net: Net, way: str) -> dict[str, Any]:
        """What trains the network on, where the way trains."""
        if WAYS[way]["mode"] == "ptq":
            return {}
        if WAYS[way].get("weight_bits") == 4:
            return {**net.on4, "epochs": self.options.epochs4}
        return {**net.on8, "epochs": self.options.epochs8}

    def _emitted(self, quantized: Quantized, student: Network, folder: Path) -> Path:
        return self._file(emit(quantized.load(student, self.data), "cpu"), folder / "int8.onnx")

    def _file(self, network: torch.nn.Module, path: Path) -> Path:
        """The network as ONNX; written where it is not there yet."""
        if not path.exists():
            written = path.with_suffix(".part.onnx")
            export_onnx(network, torch.from_numpy(self.data.example(2)), written)
            written.rename(path)
        return path

    def _runtime(
        self, folder: Path, files: Mapping[str, Path], student: Network, target: Target
    ) -> dict[str, Any]:
        """Compile for one runtime, score the compiled file, and time it beside its fp32 twin."""
        twin = target.model_copy(update={"precision": "fp32"})
        targets = {"fp32": twin, "int8": target}
        rmtree(folder, ignore_errors=True)
        try:
            compiled = {}
            for role, runtime in targets.items():
                (folder / role).mkdir(parents=True)
                compiled[role] = runtime.compile(files[role], folder / role)
            with target.open(compiled["int8"]) as session:
                outcome = evaluate(session_forward(session), self.data.eval, self.data.task)
            jobs = {role: Job(targets[role], path, self.feed) for role, path in compiled.items()}
            return {
                **_against(student.outcome, outcome),
                **self._latency(jobs),
                "int8_fraction": target.audit(compiled["int8"]).int8_fraction,
                "size_bytes": size(compiled["int8"]),
                "fp32_size_bytes": size(compiled["fp32"]),
            }
        except KdpipeError as error:
            return {"error": _line(error)}

    def _latency(self, jobs: Mapping[str, Job]) -> dict[str, float]:
        """Median milliseconds of both, and how many times faster int8 is."""
        timed = time_processes(jobs, processes=self.options.processes, seconds=0.2)
        latency = {role: [run.latency_ms for run in runs] for role, runs in timed.items()}
        ratio = latency_ratio(latency["fp32"], latency["int8"], EACH_SIDE)
        middle = {role: statistics.median(map(np.median, runs)) for role, runs in latency.items()}
        return {
            "latency_ms": float(middle["int8"]),
            "fp32_latency_ms": float(middle["fp32"]),
            "speedup": ratio.point,
            "speedup_low": ratio.low,
            "speedup_high": ratio.high,
        }

    def _stage(self, folder: Path, stage: Any, inputs: Any, kind: Any) -> tuple[Any, float]:
        """The stage's output in `folder`, and the CPU seconds that it took.

        Run where it is not there yet. CPU time, since other work on the machine stretches wall
        time; the processes that a stage starts do not count.
        """
        done = folder / "done"
        if not done.exists():
            rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            started = time.process_time()
            stage.run(inputs, Work(folder, folder, Silent()))
            done.write_text(str(time.process_time() - started))
        return kind(folder), float(done.read_text())

    def _read(self) -> dict[str, Any]:
        """Stored results of the same settings, or none yet."""
        fixed = ("data", "train", "eval", "epochs", "epochs8", "epochs4", "processes", "threads")
        settings = {name: str(getattr(self.options, name)) for name in fixed}
        settings["ways"] = json.dumps(WAYS)
        recipes = {name: json.dumps(asdict(net)) for name, net in NETS.items()}
        if not self.out.exists():
            return {"machine": fingerprint(), "settings": settings, "recipes": recipes, "nets": {}}
        found: dict[str, Any] = json.loads(self.out.read_text("utf-8"))
        changed = [name for name in found["nets"] if found["recipes"][name] != recipes.get(name)]
        found["recipes"] = {**recipes, **{name: found["recipes"][name] for name in changed}}
        if found["settings"] != settings or changed:
            raise UsageError(
                f"{self.out} has results of other settings",
                found=", ".join([f"{k} {v}" for k, v in found["settings"].items()] + changed),
                fix="give another --out, or these settings",
            )
        return found

    def _write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.results, indent=1), "utf-8")


def _against(fp32: Outcome, other: Outcome) -> dict[str, Any]:
    """Score, and the paired drop from the fp32 student with both bounds; shares, not percent."""
    drop = paired_drop(fp32.score, other.score, EACH_SIDE)
    bounds = {"drop": drop.drop, "low": drop.low, "high": drop.high, "n": drop.n}
    return {"score": other.mean, **bounds, "discordance": drop.discordance}


def _line(error: KdpipeError) -> str:
    return " ".join(str(error).split())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", type=Path, help="finished results, to print again")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's .gz")
    parser.add_argument("--out", type=Path, default=Path("quantize_modes.json"), help="JSON")
    parser.add_argument("--nets", type=_names(NETS), default=list(NETS), help=", ".join(NETS))
    parser.add_argument("--modes", type=_names(WAYS), default=list(WAYS), help=", ".join(WAYS))
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--eval", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=10, help="in fp32")
    parser.add_argument("--epochs8", type=int, default=2, help="more of fp32-on, qat and qad")
    parser.add_argument("--epochs4", type=int, default=8, help="more of w4-qat")
    parser.add_argument("--processes", type=int, default=6, help="fresh ones per latency")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if not options.show and not options.data:
        parser.error("--data is needed to train: the folder of the four .gz files")
    return options


def _names(known: Mapping[str, Any]) -> Callable[[str], list[str]]:
    """Reads names separated by commas, all of them known."""

    def names(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"no {unknown[0]}; there are {', '.join(known)}")
        return text.split(",")

    return names


if __name__ == "__main__":
    main()
