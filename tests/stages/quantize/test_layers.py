"""Precision layer by layer: what layers are called, 4-bit weights, layers and islands in float."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.aten import is_layer, path
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.emit import StoredWeight, emit
from kdpipe.stages.quantize.engine import calibrate, insert, layers
from kdpipe.stages.quantize.fake import Grid
from kdpipe.stages.quantize.policy import Policy
from kdpipe.targets.errors import UsageError


class Called(nn.Module):
    """Modules called twice, a convolution that is a function, attention inside a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.kernel = nn.Parameter(torch.randn(3, 3, 1, 1))
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.branch(self.branch(self.conv(self.conv(x))))
        x = F.conv2d(x, self.kernel).flatten(2).transpose(1, 2)
        return self.attention(x, x, x, need_weights=False)[0]


def test_layers_are_called_as_in_the_users_model(images) -> None:
    """By module path; a second call is numbered, and no two layers share a name."""
    graph = capture(Called().eval(), images(2))

    assert layers(graph) == (
        "conv",
        "conv#2",
        "branch.0",
        "branch.0#2",
        "conv2d_4",
        "attention",
        "attention.matmul",
        "attention.matmul#2",
        "attention.out_proj",
    )


def test_folding_and_inserting_keep_the_names(network, images) -> None:
    """The name is the same in the captured graph and in the quantized network."""
    graph = capture(network("residual"), images(2))
    expected = ("stem.0", "first.0", "second.0", "down.0", "head")
    body = insert(graph).body

    assert layers(graph) == expected
    # Inserting puts a quantizer before the weight, so that they are no longer plain layers.
    assert tuple(path(n) for n in body.graph.nodes if n.name in _names(graph)) == expected


def _names(graph) -> set[str]:
    return {node.name for node in graph.graph.nodes if is_layer(node)}


def test_each_layer_has_its_own_grid(network, images) -> None:
    """4 bits where the policy says so, and 8 elsewhere; stored as int8 from -8 to 7."""
    policy = Policy(layers={"second.0": Grid(4), "head": Grid(4)})
    model = insert(capture(network("residual"), images(2)), policy)
    calibrate(model, [images(16)])
    peaks = {
        name.removeprefix("quantize_").removesuffix("_weight_stored"): module.integers
        for name, module in emit(model, "trt").body.named_children()
        if isinstance(module, StoredWeight)
    }

    assert {name: t.abs().max().item() for name, t in peaks.items()} == {
        "conv2d": 127,
        "conv2d_1": 127,
        "conv2d_2": 7,
        "conv2d_3": 127,
        "linear": 7,
    }
    assert all(t.dtype is torch.int8 for t in peaks.values())


def test_four_bit_weights_run_in_int8_kernels(network, images, tmp_path) -> None:
    """All convolutions of a 4-bit network are QLinearConv in ONNX Runtime."""
    model = insert(capture(network("residual"), images(2)), Policy(weights=Grid(4)))
    calibrate(model, [images(16)])
    export_onnx(emit(model, "cpu"), images(2), tmp_path / "model.onnx")

    assert _kernels(tmp_path) == {"QLinearConv": 4, "QGemm": 1}


def _kernels(folder) -> dict[str, int]:
    import onnx

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(folder / "model.onnx", options)
    ran = [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
    counted = ("QLinearConv", "QGemm", "Conv", "FusedConv", "Gemm", "MatMul")
    return {kind: ran.count(kind) for kind in counted if kind in ran}


def test_a_float_layer_leaves_its_neighbours_in_int8(network, images, tmp_path) -> None:
    """One convolution of four in float: the other three are fused, and the file is right.

    ONNX Runtime would round the weight of the fourth by itself, were it allowed to.
    """
    policy = Policy(layers={"first.0": None})
    model = insert(capture(network("residual"), images(2)), policy)
    calibrate(model, [images(32, seed) for seed in range(4)])
    emitted = emit(model, "cpu")
    export_onnx(emitted, images(2), tmp_path / "model.onnx")
    x = images(64, seed=9)
    with torch.no_grad():
        expected = emitted(x).numpy()
        exact = network("residual")(x).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    actual = session.run(None, {"input": x.numpy()})[0]

    assert _kernels(tmp_path) == {"QLinearConv": 3, "QGemm": 1, "Conv": 1}
    assert np.abs(actual - expected).max() < 6 * np.abs(expected).max() / 127
    assert np.abs(expected - exact).mean() < 0.05 * exact.std()


def test_nothing_is_rounded_inside_an_island(network, images) -> None:
    """A sum between float layers alone is float; where the int8 part begins, values are rounded."""
    graph = capture(network("residual"), images(2)).graph
    island = Policy(layers={"first.0": None, "second.0": None, "down.0": None})
    sites = {node.name for node in island.place(graph).activations}

    # The stem is an int8 convolution because its output is rounded; the rest is the head's input.
    assert sites == {"x", "relu_", "adaptive_avg_pool2d", "flatten"}


def test_everything_in_float_but_one_layer_is_nearly_exact(network, images) -> None:
    """What is left in float is not rounded: the error is a fraction of the int8 network's."""
    names = layers(capture(network("unet"), images(2)))
    x = images(32, seed=9)
    errors = []
    for chosen in ({}, {name: None for name in names if name != "inner.0"}):
        model = insert(capture(network("unet"), images(2)), Policy(layers=chosen))
        calibrate(model, [images(32)])
        with torch.no_grad():
            errors.append((model(x) - network("unet")(x)).square().mean().item())

    assert 0 < errors[1] < 0.5 * errors[0]


def test_a_checkpoint_loads_under_a_policy_with_more_float_layers(network, images) -> None:
    """Scales keep their names, whatever stays in float; what is left over is not asked for."""
    graph = capture(network("mixed"), images(2))
    whole = insert(graph)
    calibrate(whole, [images(16)])
    for chosen in layers(graph):
        part = insert(graph, Policy(layers={chosen: None}))
        loaded = part.load_state_dict(whole.state_dict(), strict=False)

        assert not loaded.missing_keys
        assert part.calibrated


def test_a_layer_that_does_not_exist_is_refused(network, images) -> None:
    """The message lists those there are."""
    with pytest.raises(UsageError, match=r"no layer 'stem'") as caught:
        insert(capture(network("residual"), images(2)), Policy(layers={"stem": None}))

    assert "stem.0, first.0" in caught.value.found


def test_a_product_of_activations_has_no_weight_to_round(images) -> None:
    """It can stay in float; a grid for its weight would have no effect."""
    graph = capture(Called().eval(), images(2))
    with pytest.raises(UsageError, match="no weight"):
        insert(graph, Policy(layers={"attention.matmul": Grid(4)}))
    sites = Policy(layers={"attention.matmul": None}).place(graph.graph).activations

    assert len(sites) == len(Policy().place(graph.graph).activations) - 2
