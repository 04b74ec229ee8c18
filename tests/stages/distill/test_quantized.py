"""Quantization-aware distillation: the fake-quantized student is a node like any other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill import METHODS
from kdpipe.stages.distill.graph import Edge, Node
from kdpipe.stages.distill.method import Method
from kdpipe.stages.distill.response.kd import KD
from kdpipe.stages.distill.scheme import Scheme
from kdpipe.stages.distill.taps import Tapped
from kdpipe.stages.evaluate import evaluate, network_forward
from kdpipe.stages.models.blueprint import Blueprint
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.engine import QuantizedModel, calibrate, insert
from kdpipe.stages.recipe import Recipe
from kdpipe.stages.supervision import supervised
from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.training import train
from kdpipe.targets.errors import UsageError

torch.set_num_threads(1)

TAPS = (
    "stage1", "stage2:in", "stage2:pre", "stage3.0.body.0", "embedding", "head:weight", "head:bias",
)  # fmt: skip


class Gated(nn.Module):
    """A block that is called twice, SiLU, a batch norm that folds, and a dropout that goes."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.act = nn.SiLU()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4, H, W) -> (B, 3)."""
        x = self.act(self.block(self.act(self.block(x))))
        return self.head(self.dropout(x.mean((2, 3))))


def seen_by(module: nn.Module, roles: Mapping[str, str], wanted: Sequence[str], x: Tensor):
    tapped = Tapped(module, roles, wanted)
    with torch.no_grad():
        found = tapped(x)
    tapped.close()
    return found


def images(channels: int) -> Tensor:
    return torch.randn(4, channels, 16, 16, generator=torch.Generator().manual_seed(3))


def test_taps_of_a_captured_network_are_those_of_its_modules():
    """By role and by path, on all sides: before calibration both networks compute the same."""
    blueprint = Blueprint("resnet8", {"width": 0.5}, (1, 16, 16), 10)
    torch.manual_seed(0)
    net, x = blueprint.build().eval(), images(1)
    roles = blueprint.taps_of(net)
    student = insert(capture(net, x))
    code = student.body.code

    expected, found = (seen_by(module, roles, TAPS, x) for module in (net, student))

    assert found.keys() == expected.keys() == {"logits", *TAPS}
    for tap in found:
        torch.testing.assert_close(found[tap], expected[tap], rtol=1e-4, atol=1e-5)
    assert student.body.code == code


def test_a_tap_of_a_calibrated_network_is_what_the_next_layer_sees():
    """On the grid: every value is a whole number of steps, and no finer one."""
    blueprint = Blueprint("resnet8", {"width": 0.5}, (1, 16, 16), 10)
    torch.manual_seed(0)
    net, x = blueprint.build().eval(), images(1)
    student = insert(capture(net, x))
    calibrate(student, [x])
    scales = {float(q.scale) for q in student.activations()}

    seen = seen_by(student, blueprint.taps_of(net), ["stage2", "stage3:in"], x)

    assert torch.equal(seen["stage2"], seen["stage3:in"])
    steps = [seen["stage2"] / scale for scale in scales]
    assert any(torch.allclose(step, step.round(), atol=1e-3) for step in steps)


def test_taps_of_modules_that_are_called_twice_or_folded():
    """The last call counts, as with hooks; what was folded into a layer is that layer's output."""
    torch.manual_seed(0)
    net, x = Gated().eval(), images(4)
    student = insert(capture(net, x))
    wanted = ["block", "act", "act:pre", "head:in", "head:bias"]

    expected, found = (seen_by(module, {}, wanted, x) for module in (net, student))

    for tap in found:
        torch.testing.assert_close(found[tap], expected[tap], rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="tap 'dropout' does not exist") as error:
        Tapped(student, {}, ["dropout"])
    assert "modules block, block.0, act, head" in error.value.found
    with pytest.raises(UsageError, match="tap 'head:pre': there is no activation module"):
        Tapped(student, {}, ["head:pre"])


def test_a_feature_loss_trains_the_quantized_student():
    """Gradients of a tap reach the layers before it, and none behind it."""
    blueprint = Blueprint("resnet8", {"width": 0.5}, (1, 16, 16), 10)
    torch.manual_seed(0)
    net, x = blueprint.build().eval(), images(1)
    student = insert(capture(net, x))
    calibrate(student, [x])

    Tapped(student, blueprint.taps_of(net), ["stage2"])(x)["stage2"].square().mean().backward()
    moved = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}

    assert any("stage1" in name for name in moved)
    assert any("stage2" in name for name in moved)
    assert not any("stage3" in name or "head" in name for name in moved)


@pytest.fixture(scope="module")
def quantized() -> Callable[[nn.Module, Tensor], QuantizedModel]:
    """quantized(network, images): it with quantizers, uncalibrated; captured once for its shape."""
    graphs: dict[str, fx.GraphModule] = {}

    def make(network: nn.Module, x: Tensor) -> QuantizedModel:
        shapes = str([*map(str, network.children())])
        if shapes not in graphs:
            graphs[shapes] = capture(network, x)
        return insert(graphs[shapes])

    return make


CAPTURED = [
    kind
    for kind in METHODS
    if not kind.copies and kind.reshape is Method.reshape and kind.begin is Method.begin
]


@pytest.mark.parametrize("kind", CAPTURED, ids=lambda kind: kind.model_fields["kind"].default)
def test_every_method_that_qad_takes_sees_the_same_network(
    kind: type[Method], scheme_for, batch_for, quantized
):
    """Without rounding the term on the captured student is that on the student itself; with it, it
    is finite and trains."""
    method = kind.model_validate({"kind": kind.model_fields["kind"].default})
    batch, plain = batch_for(method), scheme_for(method).eval()
    node, teacher = plain.nodes["student"], plain.nodes["teacher"]
    student = quantized(node.module.eval(), batch["input"])
    nodes = {"student": Node(student, node.taps), "teacher": teacher}
    edges = [Edge("student", method, of=("teacher",) if method.taught else ())]
    torch.manual_seed(3)
    captured = Scheme(nodes, edges, batch_for(method, size=2), samples=8, epochs=10).eval()
    captured.states.load_state_dict(plain.states.state_dict())

    losses = []
    for scheme in (plain, captured):
        torch.manual_seed(0)
        losses.append(scheme(batch, 5.0)[0].item())
    calibrate(student, [batch["input"]])
    rounded = captured(batch, 5.0)[0]
    rounded.backward()

    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-5)
    assert rounded.isfinite()
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_the_fp32_twin_teaches_its_quantized_self(tmp_path: Path):
    """Knocked off by noise, the int8 student finds back to its fp32 copy, without any label."""
    out = tmp_path / "data"
    out.mkdir()
    settings = Data.model_validate({"source": "digits", "max_train": 400, "max_eval": 150})
    settings.run(DataInputs(Classification()), Work(out, out, Silent()))
    data = Dataset(out)
    torch.manual_seed(0)
    net = Blueprint("resnet8", {"width": 0.5}, data.shape, data.outputs).build()
    recipe = Recipe(epochs=6, batch_size=32, learning_rate=0.05, warmup_epochs=0, amp="fp32")
    edges = [Edge("net", supervised(recipe, data))]
    train({"net": Node(net)}, edges, recipe, data, tmp_path / "net.pt", Silent())
    twin = copy.deepcopy(net).eval()
    student = insert(capture(net.eval(), torch.from_numpy(data.example(2))))
    calibrate(student, (torch.from_numpy(x) for x, _ in data.calibration.batches(64)))

    def distance() -> float:
        x = data.eval.inputs(np.arange(150))
        return float(np.square(network_forward(student)(x) - network_forward(twin)(x)).mean())

    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3 * parameter.std(unbiased=False) * torch.randn_like(parameter))
    before = distance()
    gentle = recipe.model_copy(update={"epochs": 3, "learning_rate": 1e-3, "optimizer": "adamw"})
    nodes = {"student": Node(student), "twin": Node(twin, mode="frozen")}
    edges = [Edge("student", KD(), of=("twin",))]
    train(nodes, edges, gentle, data, tmp_path / "qad.pt", Silent())

    assert distance() < 0.5 * before
    assert evaluate(network_forward(student), data.eval, data.task).mean > 0.8
