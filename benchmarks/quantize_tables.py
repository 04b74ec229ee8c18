"""The tables of `quantize_modes.py`, made from its results alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_INT8_HEAD = (
    "way | runtime | accuracy % | drop, points | 95 % interval | ms | speed over fp32 |"
    " 95 % interval | int8 MACs % | size over fp32 | CPU s"
)
_LOW_HEAD = "way | accuracy % | drop, points | 95 % interval | of ptq's loss given back | CPU s"
_BASE = "w4-ptq"
"""The way whose loss at 4 bits the others give back."""


def document(results: Mapping[str, Any]) -> str:
    """What it ran on, and the tables of each network."""
    machine, settings = results["machine"], results["settings"]
    what = (
        f"{settings['train']} training and {settings['eval']} eval images; {settings['epochs']}"
        f" epochs in fp32, {settings['epochs8']} more of qat and qad, {settings['epochs4']} at 4"
        f" bits; {settings['processes']} processes per latency; {machine.get('cpu')},"
        f" {settings['threads']} thread(s)."
    )
    nets = (f"{markdown(name, net)}\n" for name, net in results["nets"].items())
    return "\n".join([what, "", *nets])


def markdown(name: str, net: Mapping[str, Any]) -> str:
    """The tables of one network: int8, then weights of 4 bits, then what failed and why."""
    cells = net["ways"]
    trained = f"fp32 {100 * net['score']:.2f} %, trained in {net['cpu_s']:.0f} CPU s"
    title = f"**{name}**: {net['what']}, {trained}"
    failed = [f"{way}: {cell['error']}" for way, cell in cells.items() if "error" in cell]
    good = {way: cell for way, cell in cells.items() if "error" not in cell}
    rows, low = [], []
    for way, cell in good.items():
        if cell["bits"] == 4:
            low.append(f"{_scored(way, cell)} | {_given_back(cell, good)} | {cell['cpu_s']:.0f}")
        elif cell["bits"] == 32:
            rows.append(f"{_scored(f'{way} | PyTorch', cell)} | | | | | | {cell['cpu_s']:.0f}")
        for runtime, found in cell["runtimes"].items():
            if "error" in found:
                failed.append(f"{way} in {runtime}: {found['error']}")
            else:
                rows.append(_int8_row(way, runtime, found, cell["cpu_s"]))
    tables = [*_table(_INT8_HEAD, rows), *_table(_LOW_HEAD, low)]
    return "\n".join([title, "", *tables, *(["Failed: " + "; ".join(failed)] if failed else [])])


def _table(head: str, rows: list[str]) -> list[str]:
    if not rows:
        return []
    rule = "|" + "---|" * (head.count("|") + 1)
    return [f"| {head} |", rule, *(f"| {row} |" for row in rows), ""]


def _scored(name: str, cell: Mapping[str, Any]) -> str:
    """Accuracy and drop; positive drops are losses."""
    low, high = (100 * cell[side] for side in ("low", "high"))
    drop = f"{100 * cell['drop']:+.2f} | {low:+.2f} to {high:+.2f}"
    return f"{name} | {100 * cell['score']:.2f} | {drop}"


def _int8_row(way: str, runtime: str, found: Mapping[str, Any], seconds: float) -> str:
    low, high = found["speedup_low"], found["speedup_high"]
    speed = f"{found['speedup']:.2f}x | {low:.2f} to {high:.2f}"
    size = found["size_bytes"] / found["fp32_size_bytes"]
    shares = f"{100 * found['int8_fraction']:.1f} | {size:.2f}"
    scored = _scored(f"{way} | {runtime}", found)
    return f"{scored} | {found['latency_ms']:.3f} | {speed} | {shares} | {seconds:.0f}"


def _given_back(cell: Mapping[str, Any], cells: Mapping[str, Any]) -> str:
    """(accuracy - ptq's) / (fp32's - ptq's): a share of nothing where ptq's loss is not shown."""
    ptq = cells.get(_BASE)
    if ptq is None or cell is ptq:
        return ""
    if ptq["low"] <= 0:
        return "ptq's loss is not shown"
    return f"{100 * (1 - cell['drop'] / ptq['drop']):.0f} % (n = {cell['n']})"
