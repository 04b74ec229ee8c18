"""The sentence that a failed int8 rule ends with: culprits by share, and a remedy that fits."""

from __future__ import annotations

from kdpipe.stages.models.substitute import ADVICE, CLASSES, REPLACEMENTS
from kdpipe.stages.remedy import culprits, remedy
from kdpipe.targets.audit import Audit, Layer
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

ORT, OPENVINO = OnnxRuntime(precision="int8"), OpenVino(precision="int8")


def layer(name: str, macs: int, activation: str = "", precision: str = "fp32") -> Layer:
    return Layer(name, "Conv", precision, macs, activation)  # type: ignore[arg-type]


def test_the_largest_share_comes_first() -> None:
    """Three layers are named, the others counted; what is in int8 is no culprit."""
    layers = (
        layer("stem", 10),
        layer("body", 60, "silu"),
        layer("fast", 20, precision="int8"),
        layer("neck", 7),
        layer("head", 3),
    )

    said = culprits(Audit(layers, unfused=("a", "b"), conversions={"Transpose": 1}))

    assert said == (
        "in float: body (60.0 % of the MACs, before silu), stem (10.0 % of the MACs),"
        " neck (7.0 % of the MACs) and 1 more, 2 roundings left that no int8 kernel took,"
        " 1 conversion of layout or type"
    )


def test_the_activation_with_the_most_macs_decides() -> None:
    """Two small layers before GELU do not outweigh a large one before h-swish."""
    layers = (layer("a", 20, "gelu"), layer("b", 20, "gelu"), layer("c", 60, "hardswish"))

    assert "{hardswish: relu6}" in remedy(ORT, Audit(layers))


def test_a_target_is_not_recommended_to_itself() -> None:
    """OpenVINO is told neither of itself nor of what only ONNX Runtime profits from."""
    said = remedy(OPENVINO, Audit((layer("a", 1, "silu"),)))

    assert said == (
        "openvino does not fuse silu: use `student.substitute: {silu: relu}` and distil again"
    )


def test_without_an_activation_the_kernel_is_missing() -> None:
    """A layer that no activation keeps in float needs another target, or fp32."""
    said = remedy(ORT, Audit((Layer("up", "ConvTranspose", "fp32", 1),)))

    assert "no int8 kernel for them as they stand (ConvTranspose)" in said
    assert "openvino" in said
    assert "`precision: fp32`" in said


def test_all_int8_and_still_slow_is_a_case_for_fp32() -> None:
    """Nothing is left to fuse: the network is too small for int8 to pay."""
    assert "set `precision: fp32`" in remedy(ORT, Audit((layer("a", 1, precision="int8"),)))


def test_every_advice_can_be_followed() -> None:
    """What a remedy writes into `student.substitute` is what that accepts."""
    assert set(ADVICE) <= set(CLASSES)
    assert set(ADVICE.values()) <= set(REPLACEMENTS)
