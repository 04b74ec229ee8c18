"""What rounding costs one layer at a time: how far the network's output moves, and its metric.

`search.py` returns layers to float in this order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from kdpipe.stages import statistics
from kdpipe.stages.bounds import CONFIDENCE, bounds
from kdpipe.stages.dataset import Split
from kdpipe.stages.evaluate import network_forward, together
from kdpipe.stages.quantize.aten import MATMULS, WEIGHTED, argument, attribute, path
from kdpipe.stages.quantize.engine import QuantizedModel
from kdpipe.stages.quantize.fake import Mode, Quantizer
from kdpipe.stages.quantize.layerwise import rounding
from kdpipe.stages.tasks import Task

_LEAST = -300.0
"""dB; JSON knows no infinity."""


@dataclass(frozen=True)
class Sensitivity:
    """What the network does when only `layer` is int8, with all that is rounded for its sake.

    `snr_db`: 10 log10 of the power of the output over that of its error, summed over all samples;
    None when there is no error, and -300 at least, for an output that is not finite. `score`: the
    headline metric, with `low` and `high`.
    """

    layer: str
    snr_db: float | None
    score: float
    low: float | None = None
    high: float | None = None


def rounded_layers(model: QuantizedModel) -> dict[str, fx.Node]:
    """The layers that are int8, by name, in graph order; products of activations are among them."""
    return {
        path(node): node
        for node in model.body.graph.nodes
        if (node.target in WEIGHTED or node.target in MATMULS)
        and argument(node, 1).op == "call_module"
    }


def sensitivities(
    model: QuantizedModel,
    exact: QuantizedModel,
    quantizers: Callable[[str], Collection[str]],
    split: Split,
    task: Task,
    until: float = math.inf,
) -> tuple[Sensitivity, ...] | None:
    """Of each int8 layer of a calibrated `model`, in graph order, in PyTorch, on all of `split`.

    `exact`: the same graph with the parameters from before anything was fitted to the rounding. It
    computes the float output, and each layer in turn brings its own parameters from `model`.
    `quantizers`: names of those that round where a layer is the only one in int8; tensors that
    share one are all rounded. One pass over the split for each layer; None once
    `time.monotonic()` is past `until`.
    """
    layers = {name: (node, quantizers(name)) for name, node in rounded_layers(model).items()}
    errors = dict.fromkeys(layers, 0.0)
    scores: dict[str, list[NDArray[np.float32]]] = {name: [] for name in layers}
    signal, forward = 0.0, network_forward(exact)
    size = together(task, split.preprocess.height, split.preprocess.width)
    with rounding(exact):
        for x, y in split.batches(size):
            exact.set_mode(Mode.FLOAT)
            clean = forward(x)
            signal += _power(clean)
            for name, (node, names) in layers.items():
                if time.monotonic() >= until:
                    return None
                with _only(exact, names), _parameters(exact, model, node):
                    found = forward(x)
                errors[name] += _power(found - clean)
                scores[name].append(task.outcome(found, y).score)
    return tuple(
        Sensitivity(name, _decibels(signal, errors[name]), **scored(np.concatenate(scores[name])))
        for name in layers
    )


def scored(scores: NDArray[np.float32]) -> dict[str, Any]:
    """{"score", "low", "high"}: the mean of scores (N,), with its bounds."""
    found = statistics.mean_score(scores, CONFIDENCE)
    return {"score": found.point, **bounds(found)}


def _power(values: NDArray[np.float32]) -> float:
    """The sum of squares, in double; infinite where a value is not finite."""
    power = float(np.square(values, dtype=np.float64).sum())
    return power if math.isfinite(power) else math.inf


def _decibels(signal: float, error: float) -> float | None:
    return 10 * math.log10(max(signal / error, 10 ** (_LEAST / 10))) if error else None


@contextmanager
def _only(exact: QuantizedModel, quantizers: Collection[str]) -> Iterator[None]:
    """Round by these quantizers, and then by none."""
    for name in quantizers:
        quantizer = exact.body.get_submodule(name)
        assert isinstance(quantizer, Quantizer)
        quantizer.mode = Mode.QUANTIZE
    try:
        yield
    finally:
        exact.set_mode(Mode.FLOAT)


@contextmanager
def _parameters(exact: QuantizedModel, model: QuantizedModel, layer: fx.Node) -> Iterator[None]:
    """Lend `exact` weight and bias of a layer of `model`."""
    behind = [n.args[0] if n.op == "call_module" else n for n in layer.all_input_nodes[1:]]
    names = [str(n.target) for n in behind if isinstance(n, fx.Node) and n.op == "get_attr"]
    kept = {name: attribute(exact.body, name).data for name in names}
    for name in names:
        attribute(exact.body, name).data = attribute(model.body, name).data
    try:
        yield
    finally:
        for name, value in kept.items():
            attribute(exact.body, name).data = value
