"""What `kdpipe bench` measured, as lines: every number with its unit, its n and its spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdpipe.pipeline import loads
from kdpipe.pipeline.spread import size

PERCENTILES = ("p50", "p90", "p95", "p99")


def render(measured: Mapping[str, Any]) -> Iterator[str]:
    """The measurement as lines."""
    yield f"{measured['target']}, {measured['threads']} thread(s), inputs: {measured['inputs']}"
    for name, row in measured["models"].items():
        yield from _model(name, row)
    if floor := measured.get("noise_floor"):
        yield f"noise floor {_floor(floor)}"
    if ratio := measured.get("speedup"):
        bounds = _bounds(ratio, lambda value: f"{value:.3f}")
        tie = _within(ratio, floor) if (floor := measured.get("noise_floor")) else ""
        yield (
            f"model is {ratio['ratio']:.3f}x as fast as against "
            f"({bounds}, {ratio['processes']} processes each){tie}"
        )
    yield from loads.render(measured["sweep"])
    if "reason" in measured:
        yield f"no speedup: {measured['reason']}"
    for found in measured["disturbances"]:
        yield f"disturbed {found['processes']} of {found['of']} processes: e.g. {found['example']}"
    yield "bounds are one-sided, 95 %"


def _model(name: str, row: Mapping[str, Any]) -> Iterator[str]:
    ms = row["latency_ms"]
    counts = (
        f"{ms['processes']} processes, {ms['iterations']} iterations of {row['batch']} sample(s)"
    )
    yield f"{name}: {row['file']} ({row['target']}, sha256 {row['sha256'][:12]})"
    for note in row["notes"]:
        yield f"  note {note}"
    yield f"  mean {ms['mean']:.3f} ms ({_bounds(ms, _ms)}), {counts}"
    for percentile in PERCENTILES:
        yield f"  {percentile}  {ms[percentile]:.3f} ms ({_bounds(ms['bounds'][percentile], _ms)})"
    for what in ("load_ms", "first_ms"):
        found = row[what]
        spread = f"{_bounds(found, _ms)}, median of {found['processes']} processes"
        yield f"  {what.removesuffix('_ms'):<5} {found['median']:.3f} ms ({spread})"
    memory = row["memory"]
    spread = f"{_bounds(memory, size)}, median of {memory['processes']} processes"
    yield f"  size {size(row['size_bytes'])} (exact), memory {size(memory['median'])} ({spread})"


def _floor(floor: Mapping[str, Any]) -> str:
    """Example: 2.1 %: measured twice, it was 1.004x as fast as itself (0.990 to 1.018, ...)"""
    reach = "unknown" if floor["fraction"] is None else f"{100 * floor['fraction']:.1f} %"
    bounds = _bounds(floor, lambda value: f"{value:.3f}")
    return (
        f"{reach}: measured twice, model was {floor['ratio']:.3f}x as fast as itself "
        f"({bounds}, {floor['processes']} processes each)"
    )


def _within(ratio: Mapping[str, Any], floor: Mapping[str, Any]) -> str:
    """Whether a ratio is a tie: nearer to 1 than the model is to itself."""
    reach = floor["fraction"]
    if reach is None:
        return ", beyond noise or not: the noise floor is not known"
    factor = max(ratio["ratio"], 1 / ratio["ratio"])
    return "" if factor - 1 > reach else ", a tie: within the noise floor"


def _bounds(found: Mapping[str, Any], shown: Callable[[float], str]) -> str:
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return "too few for bounds"
    return f"{shown(low)} to {shown(high)}"


def _ms(value: float) -> str:
    return f"{value:.3f}"
