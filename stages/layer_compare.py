"""Runs two files of one network side by side and compares the outputs of their layers.

What the numbers mean, and when a layer is at fault, stands in `layer_snr.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.stages.dataset import Split
from kdpipe.stages.layer_outputs import LayerOutput, expose, layer_outputs
from kdpipe.stages.layer_snr import MOST, Comparison, LayerSnr, decibels
from kdpipe.targets.base import Session, Target
from kdpipe.targets.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.floating]
else:
    from kdpipe.targets.lazy import np

SAMPLES = 64
"""Eval samples that are looked at, spread evenly over the split."""
_TOGETHER = 4
"""Samples in memory at a time, with the outputs of all layers."""
_OUTPUT = ""
"""Stands for the output of the whole network among tensor names, none of which is empty."""

Outputs = Callable[["Values"], Mapping[str, "Values"]]
"""Model inputs (n, C, H, W) -> {tensor: its values, (n, values of one sample)}."""


def compare_files(
    reference: Path,
    file: Path,
    split: Split,
    changed: Collection[str] = (),
    *,
    trained: bool = False,
) -> Comparison:
    """The layers of an int8 file against those of the fp32 `reference`, both run as written.

    Both run in ONNX Runtime without any optimization, so that nothing is fused: what differs is in
    the files. Layers are matched by name; those in `changed` compute something else on purpose, and
    are left out. `trained`: the weights were trained further, in int8. Raises StageError when ONNX
    Runtime refuses a file.
    """
    import onnx

    models = onnx.load(reference), onnx.load(file)
    before, after = (layer_outputs(model) for model in models)
    matched, left_out = _matched(before, after, changed)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def side(model: onnx.ModelProto, layers: Mapping[str, LayerOutput], name: str) -> Outputs:
            path = Path(folder, name)
            expose(model, [layers[layer].tensor for layer in matched], path)
            return _outputs(stack.enter_context(_plain(path)))

        exact, rounded = side(models[0], before, "fp32.onnx"), side(models[1], after, "int8.onnx")
        pairs = {name: (before[name].tensor, after[name].tensor) for name in matched}
        comparison = _comparison(pairs, before, left_out, exact, rounded, split)
    return replace(comparison, trained=trained)


def compare_compiled(onnx_file: Path, target: Target, artifact: Path, split: Split) -> Comparison:
    """What `target` computes in each layer of an ONNX file, against the file run as written.

    The file is compiled by the target once more, with the outputs of its layers as outputs of the
    network. That may change what is fused, so `output` is that of `artifact`, as it ships. The
    reference is ONNX Runtime without any optimization. Raises what the target raises when it
    refuses the file with further outputs.
    """
    import onnx

    model = onnx.load(onnx_file)
    layers = layer_outputs(model)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        exposed, compiled = Path(folder) / "layers.onnx", Path(folder) / "compiled"
        expose(model, [layer.tensor for layer in layers.values()], exposed)
        compiled.mkdir()
        reference = _outputs(stack.enter_context(_plain(exposed)))
        ships = _outputs(stack.enter_context(target.open(artifact)))
        inside = _outputs(stack.enter_context(target.open(target.compile(exposed, compiled))))

        def found(x: Values) -> Mapping[str, Values]:
            return {**inside(x), _OUTPUT: ships(x)[_OUTPUT]}

        pairs = {name: (layer.tensor, layer.tensor) for name, layer in layers.items()}
        return _comparison(pairs, layers, {}, reference, found, split)


def _matched(
    reference: Mapping[str, LayerOutput], file: Mapping[str, LayerOutput], changed: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """The names of layers that can be compared, in order, and why others cannot."""
    left_out = {name: "only in the reference" for name in reference if name not in file}
    left_out |= {name: "only in the file" for name in file if name not in reference}
    left_out |= {name: "changed on purpose" for name in changed if name in reference}
    return [name for name in reference if name not in left_out], left_out


def _plain(path: Path) -> Session:
    """The file in ONNX Runtime, as written."""
    return OnnxRuntime(ahead_of_time=True, threads=2).open(path)


def _outputs(session: Session) -> Outputs:
    """All outputs of a session, and under `_OUTPUT` the first, which is the network's.

    A fixed batch is fed in pieces, the last one padded. What is no whole number of values for each
    sample is left out.
    """
    name = session.inputs[0].name

    def piece(x: Values, size: int) -> dict[str, Values]:
        fed = np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)])
        every = session.run({name: np.ascontiguousarray(fed)})
        every[_OUTPUT] = every[session.outputs[0].name]
        return {
            tensor: values.astype(np.float64).reshape(size, -1)[: len(x)]
            for tensor, values in every.items()
            if values.size % size == 0
        }

    def outputs(x: Values) -> dict[str, Values]:
        size = session.batch or len(x)
        pieces = [piece(x[start : start + size], size) for start in range(0, len(x), size)]
        return {tensor: np.concatenate([p[tensor] for p in pieces]) for tensor in pieces[0]}

    return outputs


@dataclass
class _Powers:
    """Sums of squares of one layer's reference and of its difference, for each sample."""

    signal: list[Values] = field(default_factory=list)
    error: list[Values] = field(default_factory=list)
    values: int = 0
    trouble: str = ""

    def add(self, expected: Values | None, found: Values | None) -> None:
        """Take in some samples of both, (n, values of one sample) each."""
        if expected is None or found is None or expected.shape != found.shape:
            self.trouble = "its output is not there, or has another shape"
            return
        with np.errstate(over="ignore", invalid="ignore"):
            signal, error = (np.square(x).sum(1) for x in (expected, found - expected))
        if not np.isfinite(signal).all():
            self.trouble = "it is not finite in the reference"
        self.signal.append(signal)
        self.error.append(np.where(np.isfinite(error), error, np.inf))
        self.values += expected.size

    def row(self, layer: str, feeds: Sequence[str] = ()) -> LayerSnr:
        """What the sums say."""
        signal, error = np.concatenate(self.signal), np.concatenate(self.error)
        whole, power = float(signal.sum()), float(signal.sum()) / max(1, self.values)
        each = [decibels(*pair) for pair in zip(signal.tolist(), error.tolist(), strict=True)]
        levels = [MOST if level is None else level for level in each]
        snr = decibels(whole, float(error.sum()))
        low, high = (None if snr is None else float(np.quantile(levels, q)) for q in (0.1, 0.9))
        return LayerSnr(layer, snr, low, high, power, len(signal), tuple(feeds))


def _comparison(
    pairs: Mapping[str, tuple[str, str]],
    layers: Mapping[str, LayerOutput],
    left_out: Mapping[str, str],
    reference: Outputs,
    found: Outputs,
    split: Split,
) -> Comparison:
    """Run both over some samples; `pairs`: {layer: (its tensor in the reference, in the file)}."""
    wanted = {**pairs, _OUTPUT: (_OUTPUT, _OUTPUT)}
    powers = {layer: _Powers() for layer in wanted}
    rows = np.linspace(0, len(split) - 1, min(SAMPLES, len(split))).round().astype(np.int64)
    for start in range(0, len(rows), _TOGETHER):
        x = split.inputs(rows[start : start + _TOGETHER])
        expected, given = reference(x), found(x)
        for layer, (own, theirs) in wanted.items():
            powers[layer].add(expected.get(own), given.get(theirs))
    troubles = {layer: each.trouble for layer, each in powers.items() if each.trouble}
    compared = [layer for layer in pairs if layer not in troubles]
    return Comparison(
        tuple(powers[layer].row(layer, layers[layer].feeds) for layer in compared),
        None if _OUTPUT in troubles else powers[_OUTPUT].row("output"),
        {**left_out, **{layer: why for layer, why in troubles.items() if layer}},
    )
