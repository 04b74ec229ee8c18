"""Exporting what torch.export cannot trace: the same file as ever, with its branches frozen."""

from __future__ import annotations

import getpass
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.trace import Untraceable
from kdpipe.stages.torchscript import export_torchscript
from kdpipe.targets.errors import StageError


class Branching(nn.Module):
    """Inputs whose largest value is over `bound` take another way."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bound = bound
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if x.max() > self.bound:
            x = torch.relu(x)
        return self.head(x.mean((2, 3)))


class FixedBatch(nn.Module):
    """Knows how many samples it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Spectrum(nn.Module):
    """Holds an operator without an ONNX form."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x.flatten(2))


@pytest.fixture(scope="module")
def branching(images, tmp_path_factory) -> tuple[nn.Module, Path, tuple[str, ...]]:
    """A module in training mode that always takes the same branch, its file, and the places."""
    path = tmp_path_factory.mktemp("branching") / "model.onnx"
    model = Branching(bound=-1e9).train()
    return model, path, export_torchscript(model, images(2), path)


def run(path: Path, x: Tensor) -> np.ndarray:
    """The file's output in ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(["output"], {"input": x.numpy()})
    return output


def test_the_other_exporter_cannot_and_names_this_one(images, tmp_path: Path) -> None:
    """The error says what to type, and what it costs."""
    with pytest.raises(Untraceable, match=r"torch\.export cannot trace Branching") as error:
        export_onnx(Branching(bound=0), images(2), tmp_path / "model.onnx")

    assert "`export: {exporter: torchscript}`" in error.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 5])
def test_it_computes_the_same_for_any_batch_size(count: int, branching, images) -> None:
    """In eval mode, where the example took the branch that all samples take."""
    model, path, _ = branching
    x = images(count, seed=4)
    was = model.training
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    model.train(was)

    np.testing.assert_allclose(run(path, x), expected, atol=1e-5)


def test_a_branch_stays_as_the_example_took_it(images, tmp_path: Path) -> None:
    """Samples that would take the other one are computed wrongly; the export stage compares."""
    x = images(2)
    model = Branching(bound=0).eval()
    with torch.no_grad():
        model.bound = float(model.norm(model.conv(x)).max()) - 0.01
        export_torchscript(model, x, tmp_path / "model.onnx")
        other = model(x / 10).numpy()

    assert np.abs(run(tmp_path / "model.onnx", x / 10) - other).max() > 0.01


def test_the_frozen_branch_is_named_with_its_line(branching) -> None:
    """File and line of the `if`."""
    source = Path(__file__).read_text().splitlines()
    (place,) = branching[2]
    file, _, line = place.partition(":")

    assert file == Path(__file__).name
    assert "if x.max() > self.bound:" in source[int(line) - 1]


def test_a_module_without_branches_freezes_nothing(network, images, tmp_path: Path) -> None:
    """Then there is no place to name."""
    assert export_torchscript(network("residual"), images(2), tmp_path / "model.onnx") == ()


def test_the_interface_is_that_of_the_other_exporter(branching) -> None:
    """input and output, a batch dimension called batch, opset 20, one file, BN folded."""
    model, path, _ = branching
    proto = onnx.load(path)
    values = (*proto.graph.input, *proto.graph.output)

    assert model.training
    assert [value.name for value in values] == ["input", "output"]
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in values] == ["batch", "batch"]
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 20)]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}


def test_the_same_model_gives_the_same_bytes_which_tell_nothing(
    branching, images, tmp_path: Path
) -> None:
    """No path, no source line, no user name, whatever was exported before."""
    export_torchscript(branching[0], images(2), tmp_path / "again.onnx")
    data = (tmp_path / "again.onnx").read_bytes()

    assert data == branching[1].read_bytes()
    for text in (str(Path.cwd()), str(Path(__file__).parent), sys.prefix, str(Path.home())):
        assert text.encode() not in data
    assert not re.search(rb"\.py\b|File \"|/site-packages|/tmp/", data)
    assert f"/{getpass.getuser()}/".encode() not in data


def test_exporting_is_silent(images, tmp_path: Path, capfd, recwarn) -> None:
    """Nothing on stdout or stderr, no warning: the caller gets the places."""
    export_torchscript(Branching(bound=0), images(2), tmp_path / "model.onnx")

    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_a_fixed_batch_size_is_refused(images, tmp_path: Path, capfd) -> None:
    """The file would fail, or compute nonsense, on the first batch of another size."""
    with pytest.raises(StageError, match="works for a batch of 2 only") as error:
        export_torchscript(FixedBatch(), images(2), tmp_path / "model.onnx")

    assert "1 samples" in error.value.found
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_an_operator_without_an_onnx_form_is_refused(images, tmp_path: Path) -> None:
    """With the exporter's own reason."""
    with pytest.raises(StageError, match="cannot write Spectrum") as error:
        export_torchscript(Spectrum(), images(2), tmp_path / "model.onnx")

    assert "linalg_svd" in error.value.found
    assert not list(tmp_path.iterdir())


def test_more_than_two_gigabytes_are_refused(tmp_path: Path) -> None:
    """Before anything is run: one ONNX file cannot hold them."""
    with pytest.raises(StageError, match="too large for one ONNX file"):
        export_torchscript(
            nn.Linear(30_000, 30_000, device="meta"), torch.zeros(2, 30_000), tmp_path / "a.onnx"
        )
