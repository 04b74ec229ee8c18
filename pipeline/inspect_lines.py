"""What `kdpipe inspect` found, as lines for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdpipe.pipeline.spread import size
from kdpipe.targets.errors import listing

MOST = 10
"""Layers in float that are named one by one, those with most work first."""


def render(found: Mapping[str, Any]) -> Iterator[str]:
    """The findings as lines."""
    file, form, runtime = found["file"], found["format"], found["runtime"]
    if found["artifact"]:
        yield f"artifact  {found['artifact']}"
    yield f"file      {file['path']}, {size(file['size_bytes'])}"
    yield f"sha256    {file['sha256']}"
    for part in found["beside"]:
        yield f"with      {part['path']}, {size(part['size_bytes'])}, sha256 {part['sha256'][:12]}"
    if form:
        opsets = ", ".join(f"{domain} {version}" for domain, version in form["opsets"].items())
        said = [f"IR version {form['ir_version']}", f"opset {opsets}" if opsets else ""]
        said += [f"from {form['producer']}" if form.get("producer") else ""]
        yield f"format    {', '.join([form['format'], *filter(None, said)])}"
    yield f"runtime   {runtime['target']}, precision {runtime['precision'] or 'as the file says'}"
    if runtime["error"]:
        yield f"  cannot open it here: {runtime['error']}"
    for word in ("inputs", "outputs"):
        for spec in found[word] or ():
            yield f"{word.removesuffix('s'):<9} {_spec(spec)}"
    if found["audit"]:
        yield from _audit(found["audit"])
    if found["run"]:
        yield from _run(found["run"])


def _spec(spec: Mapping[str, Any]) -> str:
    """Example: input float32 (any, 3, 32, 32)"""
    shape = ", ".join("any" if side is None else str(side) for side in spec["shape"])
    return f"{spec['name']} {spec['dtype']} ({shape})"


def _audit(audit: Mapping[str, Any]) -> Iterator[str]:
    """What is executed; shares of the multiply-accumulates are exact counts."""
    layers, shares = audit["layers"], audit["shares"]
    by: dict[str, list[float]] = {}
    for layer, share in zip(layers, shares, strict=True):
        by.setdefault(layer["precision"], []).append(share)
    said = [f"{sum(each):.1%} in {name} ({len(each)} layers)" for name, each in sorted(by.items())]
    yield f"executes  {', '.join(said) or 'no convolution and no matrix product'}; shares of MACs"
    slow = [pair for pair in zip(layers, shares, strict=True) if pair[0]["precision"] != "int8"]
    if "int8" in by:
        yield from _floats(sorted(slow, key=lambda pair: -pair[1]))
    if audit["unfused"]:
        yield f"unfused   {len(audit['unfused'])}: {listing(audit['unfused'], MOST)}"
    if audit["conversions"]:
        counts = [f"{count} {name}" for name, count in audit["conversions"].items()]
        yield f"converts  layout or type: {', '.join(counts)} operators"
    kernels = [f"{count} {name}" for name, count in sorted(audit["kernels"].items())]
    yield f"kernels   {', '.join(kernels)}"


def _floats(slow: Sequence[tuple[Mapping[str, Any], float]]) -> Iterator[str]:
    for layer, share in slow[:MOST]:
        behind = f", {layer['activation']} behind it" if layer["activation"] else ""
        kind = f"{layer['kind']}, {layer['precision']}{behind}"
        yield f"float     {share:6.1%} {layer['name']} ({kind})"
    if len(slow) > MOST:
        rest = sum(share for _, share in slow[MOST:])
        yield f"float     {rest:6.1%} {len(slow) - MOST} more layers"


def _run(run: Mapping[str, Any]) -> Iterator[str]:
    if run["unchanged"]:
        yield "measured  this very file: its sha256 is the one that was timed and scored"
    for sentence in run["changed"]:
        yield f"CHANGED   {sentence}"
    yield f"run       {run['folder']}, kdpipe {run['kdpipe']}"
    with_ = f" with --set {' '.join(run['assignments'])}" if run["assignments"] else ""
    yield f"config    {run['config']}{with_}"
    machine = run["machine"]
    where = [f"{machine[name]}" for name in ("cpu", "os") if name in machine]
    where += [f"{machine['cores']} cores"] if "cores" in machine else []
    where += [f"Python {machine['python']}"] if "python" in machine else []
    versions = [
        f"{n} {machine[n]}" for n in ("onnxruntime", "openvino", "tensorrt") if n in machine
    ]
    yield f"where     {', '.join([*where, *versions]) or 'not recorded'}"
    for name, sha256 in {**run["inputs"], **run["files"]}.items():
        yield f"from      {name} sha256 {sha256[:12]}"
    for step, key in run["stages"].items():
        yield f"stage     {step}: {key}"
    twin = run["speedup_fp32"]
    if run["diagnosis"] and twin and (twin["high"] or math.inf) < 1:
        # Of a file that is not slower beyond doubt there is nothing to diagnose.
        yield f"diagnosis {run['diagnosis']}"
    if run["leak"]:
        yield f"* leak    {run['leak']}"
    for rule in run["rules"]:
        advice = not rule["required"] and rule["verdict"] != "PASS"
        yield f"{'advisory' if advice else rule['verdict']:<9} {rule['reason']}"
