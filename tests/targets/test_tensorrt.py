"""What can be known of TensorRT without a GPU: its lint, its settings, its reading of engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kdpipe.targets.device.cuda import CudaError, Device, gpus
from kdpipe.targets.errors import StageError
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.tensorrt import TensorRt, _audit
from kdpipe.targets.zeropoints import unfit_for_tensorrt

Int8 = Callable[[str], Path]


def has_gpu() -> bool:
    try:
        return gpus() > 0
    except CudaError:
        return False


def test_uint8_zero_points_are_refused(int8: Int8, tmp_path: Path) -> None:
    """TensorRT reads uint8 as int8 with only a warning; here it is an error before the build."""
    with pytest.raises(StageError, match=r"cannot take cpu\.onnx as it is quantized") as caught:
        TensorRt().compile(int8("cpu"), tmp_path)

    assert "input_QuantizeLinear: a uint8 zero point" in unfit_for_tensorrt(int8("cpu"))
    assert "trt" in caught.value.fix


def test_int32_biases_are_refused(int8: Int8) -> None:
    """The int32 biases of the `cpu` flavour do not parse in TensorRT and are named."""
    assert any(problem.endswith("an int32 bias") for problem in unfit_for_tensorrt(int8("cpu")))


def test_trt_flavour_passes(int8: Int8) -> None:
    """Nothing is wrong with symmetric int8; its weights are floats that the file itself rounds,
    with a scale for each channel."""
    assert unfit_for_tensorrt(int8("trt")) == []


def test_fp32_passes(fp32: Path) -> None:
    """A file without quantizers has no zero points to be wrong."""
    assert unfit_for_tensorrt(fp32) == []


def test_other_zero_point_is_refused(int8: Int8, tmp_path: Path) -> None:
    """One int8 zero point of 3 among many zeros is found."""
    model = onnx.load(int8("trt"))
    zero = next(t for t in model.graph.initializer if t.name == "input_zero_point")
    zero.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), zero.name))
    file = tmp_path / "shifted.onnx"
    onnx.save(model, file)

    problems = unfit_for_tensorrt(file)

    assert problems
    assert all(problem.endswith("a zero point other than 0") for problem in problems)


def test_left_out_zero_point_is_refused(int8: Int8, tmp_path: Path) -> None:
    """QuantizeLinear without a zero point means uint8 and is found."""
    model = onnx.load(int8("trt"))
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    del node.input[2]
    file = tmp_path / "without.onnx"
    onnx.save(model, file)

    assert unfit_for_tensorrt(file) == [f"{node.name}: no zero point, so uint8"]


def test_batch_is_at_most_max_batch() -> None:
    """The batch that kernels are chosen for has to be one that the engine takes."""
    with pytest.raises(ValueError, match="larger than max_batch 4"):
        TensorRt(batch=8, max_batch=4)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_the_driver_says_why() -> None:
    """Without a GPU both the question and the attempt end in the driver's own words."""
    for attempt in (gpus, Device):
        with pytest.raises(CudaError, match=r"driver|cuInit"):
            attempt()


def changed(file: Path, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of an ONNX file with something planted in it."""
    model = onnx.load(file)
    change(model)
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def test_scales_per_channel_are_for_weights(int8: Int8, tmp_path: Path) -> None:
    """An activation with a scale for each channel is found; the weights of the file have them."""

    def plant(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name in ("input_scale", "input_zero_point"):
                whole = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(np.repeat(whole, 3), tensor.name))

    problems = unfit_for_tensorrt(changed(int8("trt"), tmp_path, plant))

    assert problems
    assert all(problem.endswith("3 scales for an activation") for problem in problems)


def test_operators_on_integers_are_refused(int8: Int8, tmp_path: Path) -> None:
    """What ONNX Runtime makes of a file, and what only it knows, has no parser."""
    file = OnnxRuntime(ahead_of_time=True).compile(int8("cpu"), tmp_path)

    problems = unfit_for_tensorrt(file)

    assert any("the operator QLinearConv" in problem for problem in problems)
    assert any("of com.microsoft" in problem for problem in problems)


def test_unknown_rank_is_refused(fp32: Path, tmp_path: Path) -> None:
    """An input of any number of dimensions has no profile."""

    def plant(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.ClearField("shape")

    assert unfit_for_tensorrt(changed(fp32, tmp_path, plant)) == ["input: an input of unknown rank"]


def tensor(form: str, *shape: int) -> dict[str, object]:
    """A tensor as the inspector lists it."""
    return {"Name": "t", "Dimensions": list(shape), "Format/Datatype": form}


def test_audit_tells_int8_from_float() -> None:
    """Layers as the engine inspector prints them: int8 and half convolutions, and a copy."""
    int8 = "Thirty-two wide channel vectorized row major Int8 format"
    half = "Channel major FP16 format where channel % 8 == 0"
    layers: list[dict[str, object]] = [
        {
            "Name": "stem + relu",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [tensor(int8, -1, 3, 8, 8)],
            "Outputs": [tensor(int8, -1, 16, 8, 8)],
            "Weights": {"Type": "Int8", "Count": 432},
        },
        {
            "Name": "up",
            "LayerType": "CaskDeconvolution",
            "ParameterType": "Deconvolution",
            "Inputs": [tensor(half, -1, 16, 4, 4)],
            "Outputs": [tensor(half, -1, 8, 8, 8)],
            "Weights": {"Type": "Half", "Count": 512},
        },
        {
            "Name": "copy",
            "LayerType": "Reformat",
            "Inputs": [tensor("Row major linear FP32", -1, 3, 8, 8)],
        },
    ]

    audit = _audit(layers)

    assert [(x.name, x.precision, x.macs) for x in audit.layers] == [
        ("stem + relu", "int8", 64 * 432),
        ("up", "fp16", 16 * 512),
    ]
    assert audit.int8_fraction == 64 * 432 / (64 * 432 + 16 * 512)
    assert audit.conversions == {"Reformat": 1}
    assert audit.kernels == {"Convolution:int8": 1, "Deconvolution:fp16": 1, "Reformat:fp32": 1}
