"""Signal to noise of each layer of a file, and which is at fault first; `layer_compare.py` runs it.

`quantize/sensitivity.py` rounds one layer at a time and watches the end of the network; here all
layers are what they are in the file, and each is watched where it stands.

A layer is at fault below `BOUND` dB, or where it falls by `FALL` dB against the worst of what feeds
it, to below `FALLEN` dB; the input of the network is exact. Sound networks stay away from both
(resnet8, dscnn, mobilenet and vit on digits, unet on two halves; 64 samples, 24 for unet):

                                                               least     largest fall to below 20 dB
    int8 after calibration, cpu and trt, against fp32          22 dB     none
    the same after training in int8 (qat), against fp32         6 dB     5 dB
    compiled by ONNX Runtime and OpenVINO, fp32               119 dB     none
    compiled by ONNX Runtime and OpenVINO, int8                23 dB     none

Training in int8 changes the weights too, so that a network so trained is judged by `TRAINED`. The
first layer of a calibrated network stands at 39 to 46 dB, which is as well as 8 bits can do. With
the scale of one output channel 16 times too large, the layer was named in 24 of 24 (every second
to sixth layer of three of these networks, one of them also quantized by ONNX Runtime); 4 times, in
21.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

BOUND, TRAINED = 10.0, 0.0
"""dB: an error of a tenth of a layer's power, or of all of it where int8 was trained."""
FALL, FALLEN = 10.0, 20.0
"""dB of a fall, and below what it counts."""
LEAST, MOST = -300.0, 300.0
"""dB; JSON knows no infinity. Without any error a layer compares as `MOST`."""


def decibels(signal: float, error: float) -> float | None:
    """10 log10 of signal over error, -300 at least; None without an error."""
    return 10 * math.log10(max(signal / error, 10 ** (LEAST / 10))) if error else None


@dataclass(frozen=True)
class LayerSnr:
    """How far one layer's output is from the reference, over all samples together.

    `snr_db`: 10 log10 of the power of the reference over that of the difference; None when there is
    no difference, -300 at least, as for an output that is not finite. `low_db` and `high_db`:
    between them are 8 of 10 samples, each by itself. `power`: mean square of the reference.
    `feeds`: the layers nearest before it, none where it reads the input.
    """

    layer: str
    snr_db: float | None
    low_db: float | None
    high_db: float | None
    power: float
    samples: int
    feeds: tuple[str, ...] = ()

    @property
    def level(self) -> float:
        """`snr_db` as a number to compare by."""
        return MOST if self.snr_db is None else self.snr_db

    def __str__(self) -> str:
        if self.snr_db is None or self.low_db is None or self.high_db is None:
            return f"no noise in {self.samples} samples"
        if self.snr_db <= LEAST:
            return f"nothing of the signal is left, {self.samples} samples"
        spread = f"{self.low_db:.1f} to {self.high_db:.1f} dB in 8 of 10 of {self.samples} samples"
        return f"signal to noise {self.snr_db:.1f} dB, {spread}"


@dataclass(frozen=True)
class Comparison:
    """A file beside its reference: the `rows` of its layers in graph order, and its `output`.

    `output` is None where that of the reference is not finite, or of another shape.
    `not_compared`: {layer: why}. `trouble`: why there are no rows, where a runtime refused.
    `trained`: whether the weights of the file were trained further, in int8.
    """

    rows: tuple[LayerSnr, ...]
    output: LayerSnr | None
    not_compared: Mapping[str, str]
    trained: bool = False
    trouble: str = ""

    @property
    def first(self) -> LayerSnr | None:
        """The first layer at fault, in graph order; None where none is."""
        return next((row for row in self.rows if self._at_fault(row)), None)

    def feeding(self, row: LayerSnr) -> LayerSnr | None:
        """The worst of the layers that feed `row`; None where none of them was compared."""
        feeding = [other for other in self.rows if other.layer in row.feeds]
        return min(feeding, key=lambda other: other.level, default=None)

    def where(self) -> str:
        """Where the loss comes from, in words that go on from the hop that it was found in."""
        if self.trouble:
            return f"its layers could not be compared: {self.trouble.splitlines()[0]}"
        if not self.rows:
            return "its layers could not be compared: the files have none in common"
        if first := self.first:
            before = self.feeding(first)
            after = f", after {before.level:.1f} dB in {before.layer}" if before else ""
            return f"first at layer {first.layer} ({first}{after})"
        if self.output and self.output.level < self._bound:
            return f"behind its last layer or by fusing layers (at the output {self.output})"
        worst = min(self.rows, key=lambda row: row.level)
        return f"at no single layer (the worst is {worst.layer}: {worst})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "first": self.first.layer if self.first else None,
            "where": self.where(),
            "rows": [asdict(row) for row in self.rows],
            "output": asdict(self.output) if self.output else None,
            "not_compared": dict(self.not_compared),
        }

    @property
    def _bound(self) -> float:
        return TRAINED if self.trained else BOUND

    def _at_fault(self, row: LayerSnr) -> bool:
        if row.level >= FALLEN:
            return False
        before = self.feeding(row)
        fallen = before.level - row.level >= FALL if before else not row.feeds
        return fallen or row.level < self._bound
