"""Layers that went back to float for `quantize.max_drop`, as lines of the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from kdpipe.pipeline.spread import score

Search = Mapping[str, Any]
"""`quantized.search` of results.json."""


def lines(search: Search) -> Iterator[str]:
    """What it took to meet `max_drop`, a row for each layer in float, and what they cost.

    Example: float    head   SNR  -7.1 dB, accuracy 0.1719±0.0911 alone; the file 0.1562±0.0880 ->
    0.9375±0.0706
    """
    returned, metric = search["returned"], search["metric"]
    met = "" if search["max_drop_met"] else f" is NOT met ({search['ended']})"
    yield (
        f"float    max_drop {search['max_drop']:g}{met}: {len(returned)} of {search['layers']} "
        f"layers back in float, {metric} {_of(search, 'int8')} -> {_of(search, 'reached')} in ONNX "
        f"Runtime, fp32 {_of(search, 'fp32')}, {search['samples']} calibration samples"
    )
    alone = {each["layer"]: each for each in search["sensitivity"]}
    steps = dict(_steps(search))
    width = max(map(len, returned), default=0)
    for layer in returned:
        yield (
            f"float    {layer.ljust(width)}  SNR {_decibels(alone[layer]['snr_db'])}, {metric} "
            f"{score(alone[layer], 'score')} alone; the file {steps[layer]}"
        )
    if latency := search["latency"]:
        yield f"float    {_price(latency)}"


def _steps(search: Search) -> Iterator[tuple[str, str]]:
    """The metric of the file before and after each layer was added to those in float."""
    for before, after in pairwise(search["trials"]):
        if after["returned"][:-1] == before["returned"] != after["returned"]:
            yield after["returned"][-1], f"{score(before, 'score')} -> {score(after, 'score')}"


def _of(search: Search, name: str) -> str:
    return score({name: search[name], **search.get("bounds", {}).get(name, {})}, name)


def _decibels(value: float | None) -> str:
    return "without error" if value is None else f"{value:5.1f} dB"


def _price(latency: Mapping[str, Any]) -> str:
    """Example: 0.95x as fast as all in int8 (0.91 to 0.99), 1.42x as fast as fp32 ..."""
    slower, faster = latency["speedup_int8"]["mixed"], latency["speedup_fp32"]
    return (
        f"{_ratio(slower)} as fast as all in int8, {_ratio(faster['mixed'])} as fast as fp32, "
        f"which was {_ratio(faster['int8'])} before; {latency['processes']} fresh processes each"
    )


def _ratio(found: Mapping[str, Any]) -> str:
    bounds = [found["low"], found["high"]]
    shown = "" if None in bounds else f" ({bounds[0]:.2f} to {bounds[1]:.2f})"
    return f"{found['ratio']:.2f}x{shown}"
