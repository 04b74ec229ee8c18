"""Every offline distillation method beside a control without it, on real images, seed by seed.

python benchmarks/kd_table.py --data folder/of/fashion-mnist --out kd.json [--methods kd,dkd]
python benchmarks/kd_table.py --pair dense --data folder/of/images-and-masks --out dense.json
python benchmarks/kd_table.py --show kd.json        # the tables again, of what is finished so far

One teacher; one student of its own family, and one of another. Methods that need logits for every
pixel stand in a pair of their own, `dense`, on images with masks: a U-Net and a narrower one, whose
score is the mean IoU of each image. Each method runs alone with its
default settings beside the supervised loss, on the same samples, budget and seeds as the control.
A gain is the mean over seeds of (method - control) of the same seed, with Student's 95 % interval.
Results are written after every training; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student_t

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill import METHODS
from kdpipe.stages.distill.method import Method
from kdpipe.stages.distill.stage import Distill, Distilled, DistillInputs
from kdpipe.stages.network import Network
from kdpipe.stages.student import Architecture, Student, StudentInputs
from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.tasks.segmentation import Segmentation
from kdpipe.stages.teacher import Teacher, TeacherInputs
from kdpipe.targets.errors import KdpipeError
from kdpipe.targets.fingerprint import fingerprint

DENSE = "dense"
"""The pair of the methods that need this, and the word by which they say so."""
TEACHER: dict[str, Any] = {"model": "resnet14"}
UNET: dict[str, Any] = {"model": "unet", "arguments": {"width": 0.25, "depth": 3}}
STUDENTS: dict[str, dict[str, Any]] = {
    "same": {"model": "resnet8", "arguments": {"width": 0.5}},
    "cross": {"model": "dscnn", "arguments": {"width": 1.0}},
    DENSE: {"model": "unet", "arguments": {"width": 0.125, "depth": 3}},
}
CONTROL = "control"


class Clock(Silent):
    """An observer that notes the CPU time at which each epoch ended.

    CPU time, since trainings run side by side and beside other work, where the wall clock of one
    tells of the others.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Called once after each epoch."""
        self.ends.append(time.process_time())

    @property
    def epoch(self) -> float:
        """Median CPU seconds of an epoch; the first one also warms up and is left out."""
        spans = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(spans) if spans else math.nan


def main() -> None:
    """Train what is missing, then print the table."""
    options = _options()
    if options.show:
        return print("\n".join(document(json.loads(path.read_text())) for path in options.show))
    torch.set_num_threads(options.threads)
    table = _Table(options)
    for seed in range(options.seeds):
        for pair in table.students:
            for name in (CONTROL, *_wanted(options, pair)):
                table.fill(pair, name, seed)
    print(document(table.results))
    return None


def document(results: Mapping[str, Any]) -> str:
    """What it ran on, and the table of each pair."""
    machine, settings = results["machine"], results["settings"]
    cores = f"{machine.get('cpu')}, {settings['threads']} thread(s)"
    what = (
        f"{results['samples']['train']} training and {results['samples']['eval']} eval images,"
        f" {settings['epochs']} epochs, batch {settings.get('batch', 64)}, {cores}."
    )
    pairs = [pair for pair, cells in results["cells"].items() if cells]
    return "\n".join([what, "", *(f"{markdown(results, pair)}\n" for pair in pairs)])


def markdown(results: Mapping[str, Any], pair: str) -> str:
    """The table of one pair, best gain first; what is below the control stands below it."""
    cells = results["cells"][pair]
    control = cells[CONTROL]
    alone = f"{len(control)} | {_mean(control):.2f} | | | {_epoch(control):.1f} | 1.00x"
    rows = [(f"control, no distillation | {alone}", 0.0)]
    failed = []
    for name, runs in cells.items():
        pairs = [(runs[seed], control[seed]) for seed in sorted(runs) if seed in control]
        good = [(run, twin) for run, twin in pairs if "error" not in run]
        if name == CONTROL or not pairs:
            continue
        if good:
            rows.append(_row(name, good))
        else:
            failed.append(f"{name}: {pairs[0][0]['error']}")
    rows.sort(key=lambda row: -row[1])
    metric = results["settings"].get("metric", "accuracy")
    head = f"method | seeds | {metric} % | gain, points | 95 % interval | CPU s/epoch | vs control"
    title = f"**{pair}**: teacher {results['teacher'][pair]}, student {results['students'][pair]}"
    lines = [title, "", f"| {head} |", f"|{'---|' * 7}", *(f"| {row} |" for row, _ in rows)]
    return "\n".join([*lines, *(["", "Failed: " + "; ".join(failed)] if failed else [])])


def _row(name: str, pairs: Sequence[tuple[Any, Any]]) -> tuple[str, float]:
    """One method: the row, and the gain by which rows are sorted."""
    gains = [100 * (run["score"] - twin["score"]) for run, twin in pairs]
    gain, half = statistics.mean(gains), half_width(gains)
    mark = "" if gain - half > 0 else " (not shown)" if gain > 0 else " **below**"
    interval = f"{gain - half:+.2f} to {gain + half:+.2f}" if len(pairs) > 1 else "one seed"
    score = 100 * statistics.mean(run["score"] for run, _ in pairs)
    seconds = statistics.median(run["epoch_s"] for run, _ in pairs)
    ratio = statistics.median(run["epoch_s"] / twin["epoch_s"] for run, twin in pairs)
    cells = f"{len(pairs)} | {score:.2f} | {gain:+.2f}{mark} | {interval} | {seconds:.1f}"
    return f"`{name}` | {cells} | {ratio:.2f}x", gain


def half_width(values: Sequence[float]) -> float:
    """Half of Student's 95 % interval of a mean; infinite for a single value."""
    if len(values) < 2:
        return math.inf
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return float(student_t.ppf(0.975, len(values) - 1)) * spread


def _mean(runs: Mapping[str, Any]) -> float:
    return 100 * statistics.mean(run["score"] for run in runs.values())


def _epoch(runs: Mapping[str, Any]) -> float:
    return statistics.median(run["epoch_s"] for run in runs.values())


class _Table:
    """The results so far, in a file, and the means to fill in the rest."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.folder = self.out.with_suffix("")
        self.options = options
        self.dense = options.pair == DENSE
        self.data = self._stage("data", *self._samples(), Dataset)
        recipe = {"epochs": options.teacher_epochs, "batch_size": 16 if self.dense else 128}
        if self.dense:
            recipe["learning_rate"] = 0.05
        teacher = Teacher(**(UNET if self.dense else TEACHER), train=recipe)
        self.teacher = self._stage("teacher", teacher, TeacherInputs(self.data), Network)
        self.students = {
            pair: self._stage(
                f"student-{pair}",
                Student(**student),
                StudentInputs(self.data, self.teacher),
                Architecture,
            )
            for pair, student in STUDENTS.items()
            if pair in options.pairs
        }
        self.results = self._read()

    def _samples(self) -> tuple[Data, DataInputs]:
        """Classes of Fashion-MNIST, or pixels of photographs in which 0 is unlabelled."""
        options, folder = self.options, str(self.options.data)
        sizes = {"max_train": options.train, "max_eval": options.eval}
        augment = {"shift": 2, "flip": True}
        if not self.dense:
            source = {"kind": "idx", "folder": folder}
            data = Data(source=source, augment=augment, drop_twins=True, **sizes)
            return data, DataInputs(Classification())
        source = {"kind": "masks", "folder": folder}
        data = Data(source=source, image_size=48, augment=augment, **sizes)
        return data, DataInputs(Segmentation(ignore_index=0))

    def fill(self, pair: str, name: str, seed: int) -> None:
        """Train one student, unless that was done before."""
        cell = self.results["cells"][pair].setdefault(name, {})
        if str(seed) in cell:
            return
        clock = Clock()
        work = self.folder / "work"
        methods = [] if name == CONTROL else [{"kind": name}]
        stage = Distill(
            methods=methods,
            epochs=self.options.epochs,
            batch_size=16 if self.dense else 64,
            learning_rate=0.1 if pair == "same" else 0.05,
            clip_norm=5.0,
            seed=seed,
            control=None,
        )
        try:
            distilled = self._stage(
                work.name,
                stage,
                DistillInputs(self.data, self.teacher, self.students[pair]),
                Distilled,
                clock,
            )
            found = {"score": distilled.pairs[0]["distilled"], "epoch_s": clock.epoch}
        except KdpipeError as error:
            found = {"error": str(error)}
        _remove(work)
        cell[str(seed)] = found
        self.out.write_text(json.dumps(self.results, indent=1))
        print(pair, name, seed, found, flush=True)

    def _stage(
        self, name: str, stage: Any, inputs: Any, kind: Any, observer: Silent | None = None
    ) -> Any:
        """The stage's output in a folder of its name; run where it is not there yet."""
        folder = self.folder / name
        if not (folder / "done").exists():
            _remove(folder)
            folder.mkdir(parents=True)
            stage.run(inputs, Work(folder, folder, observer or Silent()))
            (folder / "done").touch()
        return kind(folder)

    def _read(self) -> dict[str, Any]:
        if self.out.exists():
            found: dict[str, Any] = json.loads(self.out.read_text("utf-8"))
            return found
        score = 100 * self.teacher.outcome.mean
        model, parameters = self.teacher.blueprint.model, self.teacher.facts["parameters"]
        return {
            "machine": fingerprint(),
            "samples": {"train": len(self.data.train), "eval": len(self.data.eval)},
            "settings": {
                **{k: str(v) for k, v in vars(self.options).items()},
                "metric": self.data.task.metric,
                "batch": 16 if self.dense else 64,
            },
            "teacher": dict.fromkeys(
                STUDENTS, f"{model}, {parameters:,} parameters, {score:.2f} %"
            ),
            "students": {pair: f"{s['model']} {s['arguments']}" for pair, s in STUDENTS.items()},
            "cells": {pair: {} for pair in STUDENTS},
        }


def _wanted(options: argparse.Namespace, pair: str) -> list[str]:
    """The methods that one teacher is enough for, and whose logits are those of the pair."""
    if options.methods:
        return list(options.methods.split(","))
    return [
        _kind(method)
        for method in METHODS
        if "several teachers" not in method.needs and (DENSE in method.needs) == (pair == DENSE)
    ]


def _kind(method: type[Method]) -> str:
    return str(method.model_fields["kind"].default)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", type=Path, nargs="+", help="finished results, to print again")
    parser.add_argument(
        "--data", type=Path, help="folder of Fashion-MNIST's .gz; for dense train/ and eval/"
    )
    parser.add_argument("--out", type=Path, default=Path("kd_table.json"), help="results, JSON")
    parser.add_argument("--methods", help="kinds, separated by commas; all by default")
    parser.add_argument("--pair", choices=list(STUDENTS), help="by default all but dense")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--eval", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not options.show and not options.data:
        parser.error("--data is needed to train: the folder of the four .gz files, or of the masks")
    options.pairs = [options.pair] if options.pair else [p for p in STUDENTS if p != DENSE]
    return options


if __name__ == "__main__":
    main()
