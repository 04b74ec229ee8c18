"""A trained network -> one with quantizers in it, calibrated, as the settings say; no training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx

from kdpipe.stages.calibration import require_usable
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.network import Network
from kdpipe.stages.quantize.adaround import adaround
from kdpipe.stages.quantize.aten import WEIGHTED, is_layer, path
from kdpipe.stages.quantize.bias import add_biases, correct_biases
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.engine import QuantizedModel, calibrate, insert
from kdpipe.stages.quantize.equalize import equalize
from kdpipe.stages.quantize.fake import Grid
from kdpipe.stages.quantize.policy import Policy
from kdpipe.stages.quantize.settings import Quantization
from kdpipe.stages.quantize.trace import Untraceable
from kdpipe.targets.errors import UsageError, listing

_BATCH = 64
_OTHER_ENGINE = "write `quantize: {mode: ptq, engine: onnxruntime}`"


def inserted(
    settings: Quantization, network: Network, data: Dataset, returned: Collection[str] = ()
) -> QuantizedModel:
    """The network with quantizers that know no scale: what the state of `calibrated` fits.

    `returned`: layers that `search.py` has put back into float.
    """
    graph = _captured(settings, network, data)
    return insert(graph, policy(settings, graph, returned))


def float_graph(
    settings: Quantization, network: Network, data: Dataset
) -> tuple[fx.GraphModule, dict[str, Any]]:
    """What quantizers go into: captured, and equalized where asked; and what that did.

    Raises UsageError for a black box, StageError where the network cannot be captured.
    """
    graph, done = _captured(settings, network, data), dict[str, Any]()
    if settings.equalize:
        found = equalize(graph)
        done["equalized"] = {
            site.layer: {"readers": list(site.readers), "spread": site.spread}
            for site in found.equalized
        }
        done["not_equalized"] = dict(found.skipped)
    return graph, done


def calibrated(
    settings: Quantization, network: Network, data: Dataset, seed: int
) -> tuple[QuantizedModel, dict[str, Any]]:
    """The network with scales from the calibration samples, and what was done to its weights.

    Raises DataError when the samples are no use, UsageError for a black box and for a pattern in
    `layers` that names nothing, StageError where the network cannot be captured or calibrated.
    """
    require_usable(data)
    graph, done = float_graph(settings, network, data)
    model = insert(graph, policy(settings, graph))
    calibrate(model, calibration_batches(data))
    if chosen := settings.adaround():
        learned = adaround(model, graph, calibration_batches(data), chosen.settings(seed))
        done["rounding"] = {
            each.layer: {"nearest": each.nearest, "learned": each.learned} for each in learned
        }
    if settings.correct_bias:
        correct_biases(model, graph, calibration_batches(data))
    return model, done


def policy(settings: Quantization, graph: fx.GraphModule, returned: Collection[str] = ()) -> Policy:
    """Where and how a captured graph is rounded; the layers in `returned` are in float as well.

    Raises UsageError for a pattern that names no layer, or counts for none.
    """
    return Policy(
        weights=Grid(settings.weight_bits),
        observer=settings.ranges.observer,
        layers={**_grids(settings.layers, graph), **dict.fromkeys(returned)},
        before_activations=settings.before_activations,
        heads=settings.round_output,
        learned=settings.learned_scales,
    )


def _grids(layers: Mapping[str, Any], graph: fx.GraphModule) -> dict[str, Grid | None]:
    """The grid of each layer that a pattern names, None for float."""
    nodes = {path(node): node for node in graph.graph.nodes if is_layer(node)}
    grids: dict[str, Grid | None] = {}
    counting: set[str] = set()
    for name, node in nodes.items():
        longest = _longest(name, layers)
        bits = layers[longest[0]] if longest else None
        # A product of two activations has no weight: only who names it in full is told so.
        if bits == "float" or (bits and (node.target in WEIGHTED or name in longest)):
            grids[name] = None if bits == "float" else Grid(bits)
            counting |= set(longest)
    for pattern in layers:
        if pattern not in counting:
            raise _idle(pattern, nodes)
    return grids


def _idle(pattern: str, nodes: Mapping[str, fx.Node]) -> UsageError:
    """Why a pattern counts for no layer."""
    matching = [name for name in nodes if fnmatchcase(name, pattern)]
    if not matching:
        return UsageError(
            f"quantize.layers: no layer is called '{pattern}'",
            found=listing(list(nodes), 40),
            fix="name one of these, or several by a pattern such as `layer1.*`",
        )
    return UsageError(
        f"quantize.layers: '{pattern}' does nothing",
        found=f"others count before it, or there is no weight, in: {listing(matching)}",
        fix=f"remove '{pattern}', or name fewer of these by full names and longer patterns",
    )


def _longest(name: str, layers: Mapping[str, Any]) -> list[str]:
    """The full name, or the longest of the patterns that match.

    Raises UsageError when two of them contradict each other: their order in the config has no say,
    as it is not part of a stage's key.
    """
    if name in layers:
        return [name]  # `head*` is longer, and means less
    matching = [pattern for pattern in layers if fnmatchcase(name, pattern)]
    longest = [p for p in matching if len(p) == max(map(len, matching))]
    if len({layers[pattern] for pattern in longest}) > 1:
        raise UsageError(
            f"quantize.layers: layer '{name}' is named twice",
            found=", ".join(f"'{pattern}': {layers[pattern]}" for pattern in longest),
            fix=f"name '{name}' in full, which counts before patterns, or change one of the two",
        )
    return longest


def _captured(settings: Quantization, network: Network, data: Dataset) -> fx.GraphModule:
    if network.onnx:
        raise UsageError(
            "an ONNX file cannot be quantized by the graph engine",
            found=network.blueprint.model,
            fix=f"{_OTHER_ENGINE}, distil a student from it, or set `quantize: null`",
        )
    try:
        graph = capture(network.load(), torch.from_numpy(data.example(2)))
    except Untraceable as error:
        fix = f"{error.fix}; or {_OTHER_ENGINE}"
        raise Untraceable(error.what, found=error.found, fix=fix) from error
    if settings.correct_bias:
        add_biases(graph)
    return graph


def calibration_batches(data: Dataset) -> Iterator[Tensor]:
    """The calibration samples in order, (N, C, H, W)."""
    return (torch.from_numpy(x) for x, _ in data.calibration.batches(_BATCH))
