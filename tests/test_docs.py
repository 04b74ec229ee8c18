"""Documents that cannot rot: README, CONTRIBUTING, examples and results.md against the code."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BRIEF = "processes: 2, iterations: 5, seconds: 0.0, memory_processes: 1, energy_processes: 0"
FASHION = ROOT.parent / "shared/data/fashion-mnist"


def blocks(document: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file that exists."""
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())

    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.yaml")), ids=lambda p: p.stem)
def test_examples_are_valid(example: Path) -> None:
    """Every example is a config that kdpipe accepts."""
    from kdpipe.pipeline.config import Config

    assert Config.read(example).steps()


def test_yaml_of_the_readme_runs(tmp_path: Path) -> None:
    """The YAML block of the README is a whole config; cut short, it runs to measured artifacts."""
    (text,) = blocks(ROOT / "README.md", "yaml")
    (tmp_path / "readme.yaml").write_text(text)
    short = ["data.max_train=300", "data.max_eval=100", "gate=null"]
    short += ["teacher.train={epochs: 6, batch_size: 16, learning_rate: 0.03}"]
    short += ["distill={epochs: 1, control: null}", "quantize={mode: ptq}"]
    short += [f"benchmark={{{BRIEF}}}"]
    arguments = [argument for setting in short for argument in ("--set", setting)]
    run = kdpipe("run", str(tmp_path / "readme.yaml"), *arguments, f"--store={tmp_path}", "--json")

    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(run.stdout)["artifacts"]
    assert [artifact["id"] for artifact in found] == ["onnxruntime-int8", "openvino-fp32"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_blank_is_left_to_fill(document: Path) -> None:
    """No document ships with a placeholder."""
    assert re.findall(r"@[A-Z_]{4,}@", document.read_text()) == []


def test_readme_lists_the_commands_that_exist() -> None:
    """The command table names each verb of the command line, and no other."""
    from kdpipe.pipeline.cli import app

    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    table = (ROOT / "README.md").read_text().split("## Commands")[1].split("## ")[0]
    named = set(re.findall(r"`(?:kdpipe )?([a-z]+)[ `]", table))

    assert verbs <= named


def test_readme_lists_the_targets_that_exist() -> None:
    """The target table has one row for each target."""
    from kdpipe.targets import TARGETS

    table = (ROOT / "README.md").read_text().split("## Targets")[1].split("## ")[0]
    rows = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)

    assert rows == [target.model_fields["name"].default for target in TARGETS]


def test_method_of_contributing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example method trains a network on the engine: its loss falls to that of identity."""
    import torch

    from kdpipe.stages.distill.graph import Edge, Node
    from kdpipe.stages.distill.scheme import Scheme

    (source,) = blocks(ROOT / "CONTRIBUTING.md", "python")
    (tmp_path / "contributed_l1.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    method = importlib.import_module("contributed_l1").L1(weight=2.0)
    torch.manual_seed(0)
    nodes = {
        "student": Node(torch.nn.Linear(4, 3)),
        "teacher": Node(torch.nn.Linear(4, 3), mode="frozen"),
    }
    batch = {"input": torch.randn(16, 4)}
    scheme = Scheme(nodes, [Edge("student", method, of=("teacher",))], batch)
    optimizer = torch.optim.Adam(scheme.trained(), lr=0.05)
    losses = []
    for _ in range(200):
        loss, terms, seen = scheme(batch, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    difference = (seen["student"]["logits"] - seen["teacher"]["logits"]).abs().mean()
    assert list(terms) == ["student<-teacher:l1"]
    assert loss.item() == pytest.approx(2 * difference.item(), rel=1e-5)
    assert losses[-1] < 0.1 * losses[0]


def test_the_table_of_methods_is_that_of_the_code() -> None:
    """docs/methods.md is what `kdpipe methods --markdown` prints, to the letter."""
    from kdpipe.stages.distill.handbook import markdown

    found = (ROOT / "docs/methods.md").read_text("utf-8")

    assert found == markdown() + "\n", "kdpipe methods --markdown > docs/methods.md"


def test_settings_in_the_guide_are_valid() -> None:
    """Every YAML block of docs/distillation.md is made of sections that validate."""
    import yaml

    from kdpipe.stages.data import Data
    from kdpipe.stages.distill.stage import Distill
    from kdpipe.stages.tasks.segmentation import Segmentation

    found = [yaml.safe_load(text) for text in blocks(ROOT / "docs/distillation.md", "yaml")]

    assert len(found) >= 8
    for document in found:
        assert set(document) <= {"data", "distill", "task"}
        if "task" in document:
            Segmentation.model_validate(document["task"])
        if "data" in document:
            Data.model_validate(document["data"], context={"base": ROOT})
        if "distill" in document:
            Distill.model_validate(document["distill"], context={"base": ROOT})


def test_settings_in_the_guide_to_quantization_are_valid() -> None:
    """Every YAML block of docs/quantization.md validates, and every setting of its own is shown."""
    import yaml

    from kdpipe.stages.data import Data
    from kdpipe.stages.export import Export
    from kdpipe.stages.quantize.settings import RANGES, Quantization
    from kdpipe.stages.quantize.stage import Quantize

    stages = {"data": Data, "export": Export, "quantize": Quantize}
    text = (ROOT / "docs/quantization.md").read_text("utf-8")
    found = [yaml.safe_load(block) for block in blocks(ROOT / "docs/quantization.md", "yaml")]
    shown = {name for document in found for name in document.get("quantize", ())}

    assert len(found) >= 10
    for document in found:
        for name, settings in document.items():
            stages[name].model_validate(settings, context={"base": ROOT})
    own = {*Quantization.model_fields, "methods", "teacher", "supervised", "control"}
    assert own <= shown
    kinds = [kind.model_fields["kind"].default for kind in RANGES]
    assert [kind for kind in kinds if f"`{kind}`" not in text] == []


def test_results_are_documented(tiny: Any) -> None:
    """Every field of a real results.json stands in docs/results.md."""
    text = (ROOT / "docs/results.md").read_text()
    found = json.loads((tiny.folder / ".kdpipe/runs/tiny/results.json").read_text())
    names = set(found) | set(found["artifacts"][0]) | set(found["gate"]["rules"][0])
    names |= set(found["gate"]) | set(found["teacher"]) | set(found["control"])

    assert (
        sorted(name for name in names if f"`{name}`" not in text and f"`{name}[]`" not in text)
        == []
    )


@pytest.mark.skipif(not FASHION.exists(), reason=f"needs {FASHION}")
def test_fashion_mnist_example_on_a_few_images(tmp_path: Path) -> None:
    """The Fashion-MNIST example runs from IDX files to measured artifacts, cut short."""
    short = ["data.max_train=500", "data.max_eval=200", "teacher.train.epochs=1"]
    short += ["distill.epochs=1", "distill.control=null", "quantize.epochs=1"]
    short += [f"benchmark={{{BRIEF}}}"]
    short += [f"data.source.folder={FASHION}", "gate=null"]
    arguments = [argument for setting in short for argument in ("--set", setting)]
    run = kdpipe(
        "run",
        str(ROOT / "examples/fashion_mnist.yaml"),
        *arguments,
        f"--store={tmp_path}",
        "--json",
    )

    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["data"]["classes"] == 10
    assert [artifact["id"] for artifact in found["artifacts"]] == [
        "onnxruntime-int8",
        "openvino-int8",
    ]


def kdpipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command away from the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "kdpipe.pipeline", *arguments], capture_output=True, text=True
    )
