"""Exporting any module: what the file looks like, that it tells nothing, and clear errors."""

from __future__ import annotations

import copy
import getpass
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.emit import emit
from kdpipe.targets.errors import StageError


class Inner(nn.Module):
    """Holds an operator without an ONNX form."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x.flatten(2))


@pytest.fixture(scope="module")
def floats(network, images, tmp_path_factory) -> tuple[nn.Module, Path]:
    """A float model in training mode, and its file."""
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    model = network("residual").train()
    export_onnx(model, images(2), path)
    return model, path


def test_a_float_model_computes_the_same_in_onnxruntime(floats, images) -> None:
    """In eval mode, for any batch size."""
    model, path = floats
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for count in (1, 5):
            x = images(count, seed=2)
            actual = session.run(None, {"input": x.numpy()})[0]
            expected = copy.deepcopy(model).eval()(x)
            torch.testing.assert_close(torch.from_numpy(actual), expected, atol=1e-5, rtol=1e-4)


def test_the_model_is_left_as_it_is(floats, network) -> None:
    """Mode, weights and batch norm statistics."""
    model, _ = floats
    expected = network("residual").state_dict()

    assert model.training
    assert all(torch.equal(expected[key], value) for key, value in model.state_dict().items())


def test_the_interface_has_fixed_names(floats) -> None:
    """input and output, a batch dimension called batch, opset 20, one file, BN folded."""
    _, path = floats
    model = onnx.load(path)
    dims = [
        v.type.tensor_type.shape.dim[0].dim_param
        for v in (model.graph.input[0], model.graph.output[0])
    ]

    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["input", "output"]
    assert dims == ["batch", "batch"]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_the_file_tells_nothing_of_this_machine(case, floats) -> None:
    """No path, no source line, no user name in the bytes."""
    here = [str(Path.cwd()), str(Path(__file__).parent), sys.prefix, str(Path.home())]
    for path in (*case.files.values(), floats[1]):
        data = path.read_bytes()
        assert not [text for text in here if text.encode() in data]
        assert not re.search(rb"\.py\b|File \"|/site-packages|/tmp/", data)
        assert f"/{getpass.getuser()}/".encode() not in data


def test_the_same_model_gives_the_same_bytes(quantized, images, tmp_path: Path) -> None:
    """Nothing depends on what was exported before."""
    module = emit(quantized("residual"), "cpu")
    for name in ("a", "b"):
        export_onnx(module, images(2), tmp_path / name)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    """Nothing depends on hash seeds either."""
    code = (
        "import sys, pathlib, torch; from torch import nn\n"
        "from kdpipe.stages.onnx_export import export_onnx\n"
        "torch.manual_seed(0)\n"
        "net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))\n"
        "export_onnx(net, torch.zeros(2, 3, 8, 8), pathlib.Path(sys.argv[1]))\n"
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    export_onnx(net, torch.zeros(2, 3, 8, 8), tmp_path / "here")
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "there"], check=True, env=environment)

    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_exporting_is_silent(network, images, tmp_path: Path, capfd, recwarn) -> None:
    """Nothing on stdout or stderr, no warning."""
    export_onnx(network("unet"), images(2), tmp_path / "model.onnx")

    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_an_unsupported_operator_is_named_with_its_place(images, tmp_path: Path, capfd) -> None:
    """The operator, the module it is in, no file left behind, nothing printed."""
    model = nn.Sequential()
    model.add_module("spectrum", Inner())
    with pytest.raises(StageError, match=r"linalg_svd.* has no ONNX form") as caught:
        export_onnx(model, images(2), tmp_path / "model.onnx")

    assert "spectrum" in caught.value.found
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_more_than_two_gigabytes_are_refused(tmp_path: Path) -> None:
    """Before anything is traced: one ONNX file cannot hold them."""
    model = nn.Linear(30_000, 30_000, device="meta")
    with pytest.raises(StageError, match="too large") as caught:
        export_onnx(model, torch.zeros(2, 30_000), tmp_path / "model.onnx")

    assert "3.60 GB" in caught.value.found
