"""Vision transformers, however they write attention: captured as they are, int8 where it pays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.emit import PARITY_STEPS, emit
from kdpipe.stages.quantize.engine import QuantizedModel, calibrate, insert, layers
from kdpipe.stages.quantize.policy import Policy
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

ATEN = torch.ops.aten
WRITTEN = ("fused", "explicit", "module", "module with weights")


class Attention(nn.Module):
    """Queries, keys and values from one layer, as in timm."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * (c // 4) ** -0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, c))


class Module(nn.Module):
    """nn.MultiheadAttention, which fuses only when nobody asks for the attention weights."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(32, 4, batch_first=True)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=self.weights)[0]


class Vit(nn.Module):
    """Patch embedding, a class token or the mean over tokens, one block before the head."""

    def __init__(self, written: str, token: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 32)) if token else None
        self.position = nn.Parameter(torch.randn(1, 16 + token, 32) * 0.3)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        asked = written == "module with weights"
        self.attention = Module(asked) if "module" in written else Attention(written == "fused")
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.position
        x = x + self.attention(self.norms[0](x))
        x = self.norms[2](x + self.mlp(self.norms[1](x)))
        return self.head(x.mean(1) if self.token is None else x[:, 0])


@pytest.fixture
def vit(images):
    """vit("fused", token=True): a network with random weights."""

    def make(written: str, token: bool = True) -> nn.Module:
        torch.manual_seed(0)
        return Vit(written, token).eval()

    return make


def prepared(model: nn.Module, images, policy: Policy | None = None) -> QuantizedModel:
    quantized = insert(capture(model, images(2)), policy)
    calibrate(quantized, [images(32, seed) for seed in range(2)])
    return quantized


@pytest.mark.parametrize(
    ("written", "token"), [*((written, True) for written in WRITTEN), ("fused", False)]
)
def test_captured_unmodified(written: str, token: bool, vit, images) -> None:
    """The graph computes what the model does, for any batch, and holds no fused attention."""
    model, x = vit(written, token), images(7, seed=3)
    graph = capture(model, images(2))

    torch.testing.assert_close(graph(x), model(x), atol=1e-5, rtol=1e-5)
    targets = [node.target for node in graph.graph.nodes]
    assert ATEN.scaled_dot_product_attention.default not in targets
    assert len(layers(graph)) == 8


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"scale": 0.2},
        {"attn_mask": torch.ones(16, 16).tril().bool()},
        {"attn_mask": torch.linspace(-2, 2, 256).view(16, 16)},
    ],
)
def test_every_option_of_attention_is_written_out(options: dict, images) -> None:
    """Causal, with a scale, a boolean and a float mask: as torch computes them."""

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x.flip(-1), x * 2, **options)

    x = images(5)
    graph = capture(Masked(), images(2))

    torch.testing.assert_close(graph(x), Masked()(x), atol=1e-5, rtol=1e-5)
    assert sum(node.target is ATEN.matmul.default for node in graph.graph.nodes) == 2


def test_what_is_rounded(vit, images) -> None:
    """Inputs of layers and of products; no sum, layer norm or position, and not the class token."""
    graph = capture(vit("fused"), images(2)).graph
    rounded = [
        node.target for node in Policy().place(graph).activations if node.op != "placeholder"
    ]

    assert ATEN.add.Tensor not in rounded
    assert ATEN.cat.default not in rounded
    assert ATEN.expand.default not in rounded
    assert rounded.count(ATEN.layer_norm.default) == 2  # as inputs of linear layers
    assert rounded.count(ATEN.gelu.default) == 1
    assert rounded.count(ATEN.softmax.int) == 1


def test_runtimes_compute_a_module_in_int8(vit, images, tmp_path: Path) -> None:
    """nn.MultiheadAttention with a class token: every layer and product, and the right result.
    OpenVINO runs the two products as one Subgraph, and both are counted.

    In ONNX Runtime the patch embedding needs its output rounded, see BEFORE_ACTIVATIONS.
    `test_networks.py` has a transformer of the zoo.
    """
    emitted, path = emit(prepared(vit("module"), images), "cpu"), tmp_path / "model.onnx"
    export_onnx(emitted, images(2), path)
    x = images(16, seed=9)
    with torch.no_grad():
        expected = emitted(x).numpy()
    floats = {}
    for target in (OnnxRuntime(precision="int8"), OpenVino(precision="int8", batch=len(x))):
        folder = tmp_path / target.id
        folder.mkdir()
        artifact = target.compile(path, folder)
        audit = target.audit(artifact)
        floats[target.name] = audit.float_kernels
        with target.open(artifact) as session:
            actual = session.run({"input": x.numpy()})["output"]

        products = sorted(x.macs for x in audit.layers if x.kind in ("Subgraph", "QLinearMatMul"))
        assert len(audit.layers) == 8
        assert set(products[:2]) == {4 * 17 * 17 * 8}  # heads, tokens, tokens, channels of a head
        assert np.abs(actual - expected).max() < PARITY_STEPS * np.abs(expected).max() / 127
    assert floats == {"onnxruntime": ("patch",), "openvino": ()}


def test_trt_is_what_was_trained(vit, images) -> None:
    """In torch bit for bit."""
    model, x = prepared(vit("fused"), images), images(32, seed=9)
    with torch.no_grad():
        assert torch.equal(emit(model, "trt")(x), model(x))


def test_a_transformer_trains_in_int8(vit, images) -> None:
    """Gradients reach every weight, the class token and the positions among them."""
    model = prepared(vit("module"), images)
    F.mse_loss(model(images(8)), torch.randn(8, 10)).backward()

    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
