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
    with pytest.raises(StageError, match="zero point to be int8 and 0") as caught:
        TensorRt().compile(int8("cpu"), tmp_path)

    assert "input_QuantizeLinear: a uint8 zero point" in unfit_for_tensorrt(int8("cpu"))
    assert "trt" in caught.value.fix


def test_int32_biases_are_refused(int8: Int8) -> None:
    """The int32 biases of the `cpu` flavour do not parse in TensorRT and are named."""
    assert any(problem.endswith("an int32 bias") for problem in unfit_for_tensorrt(int8("cpu")))


def test_trt_flavour_passes(int8: Int8) -> None:
    """Nothing is wrong with symmetric int8, and nothing with a file that is not quantized."""
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


def test_audit_tells_int8_from_float() -> None:
    """Layers as the engine inspector prints them: int8 and half convolutions, and a copy."""
    layers = [
        {
            "Name": "stem + relu",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8"}],
        },
        {
            "Name": "block",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
        },
        {
            "Name": "copy",
            "LayerType": "Reformat",
            "Inputs": [{"Format/Datatype": "Row major linear FP32"}],
        },
    ]

    audit = _audit(layers)

    assert audit.int8_fraction == 0.5
    assert audit.float_kernels == ("block",)
    assert audit.kernels == {"Convolution:int8": 1, "Convolution:float": 1, "Reformat:float": 1}
