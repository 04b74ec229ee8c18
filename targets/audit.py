"""What a runtime really runs, layer by layer; each target reads it from its own optimized graph.

Multiply-accumulates (MACs) are counted from shapes, the same way for every runtime: one per weight
and position, element-wise work left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Executed = Literal["int8", "fp32", "fp16", "bf16"]

Shape = Sequence[int]


@dataclass(frozen=True)
class Layer:
    """One executed convolution or matrix product.

    `name`: of the node in the ONNX file, as far as the runtime still tells. `kind`: what the
    runtime calls it. `precision`: in which it multiplies. `macs`: multiply-accumulates for one
    sample; None where the shapes leave it open (free sides, a branch that did not run).
    `activation`: what stands behind the layer and was not fused into it, by the names of
    `student.substitute` (`silu`) where it has one there, else as the runtime calls it; "" for none.
    """

    name: str
    kind: str
    precision: Executed
    macs: int | None
    activation: str = ""


@dataclass(frozen=True)
class Audit:
    """What the runtime really executes.

    `layers`: the convolutions and matrix products, in the order of the graph. `kernels`: how many
    of each kernel, e.g. {"Convolution:u8": 9}. `unfused`: names of the activations that are
    rounded to int8 and at once made float again, because no int8 kernel took them. `conversions`:
    how many operators only change the layout or type of a tensor, by the runtime's name.
    """

    layers: tuple[Layer, ...] = ()
    kernels: Mapping[str, int] = field(default_factory=dict)
    unfused: tuple[str, ...] = ()
    conversions: Mapping[str, int] = field(default_factory=dict)

    @property
    def int8_fraction(self) -> float:
        """Share of the MACs that run in int8, 0.0 to 1.0; 0.0 without any layer."""
        weights = self._weights()
        int8 = (n for n, x in zip(weights, self.layers, strict=True) if x.precision == "int8")
        return sum(int8) / max(1, sum(weights))

    @property
    def float_kernels(self) -> tuple[str, ...]:
        """Names of the layers that stayed in float."""
        return tuple(layer.name for layer in self.layers if layer.precision != "int8")

    def shares(self) -> list[tuple[Layer, float]]:
        """Each layer with its share of the MACs; the shares add up to 1.

        Where the MACs of a layer are unknown, or nothing multiplies, all layers count the same.
        """
        weights = self._weights()
        return [(x, n / sum(weights)) for x, n in zip(self.layers, weights, strict=True)]

    def _weights(self) -> list[int]:
        macs = [layer.macs for layer in self.layers if layer.macs is not None]
        known = len(macs) == len(self.layers) and sum(macs) > 0
        return macs if known else [1] * len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold, with the share of int8 and the names left in float."""
        return {
            "int8_fraction": self.int8_fraction,
            "float_kernels": list(self.float_kernels),
            "layers": [asdict(layer) for layer in self.layers],
            "kernels": dict(self.kernels),
            "unfused": list(self.unfused),
            "conversions": dict(self.conversions),
        }


def convolution_macs(output: Shape, weight: Shape, channels: int) -> int:
    """MACs of a convolution that gives `output` with all of `weight`, whatever the layouts.

    Every output value of one of the `channels` takes that channel's share of the weights. For a
    transposed convolution it is the input that is walked over: pass its shape and channels.
    """
    return math.prod(output) * math.prod(weight) // channels


def product_macs(output: Shape, inner: int) -> int:
    """MACs of a matrix product: `inner`, the length summed over, for every value of `output`."""
    return math.prod(output) * inner
