"""The lines below the table of the summary: what it has no room for, and one line per verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from kdpipe.pipeline import returned
from kdpipe.pipeline.spread import LEGEND, drop, fraction, score
from kdpipe.stages import Rule
from kdpipe.stages.hygiene.leaks import wording

Results = Mapping[str, Any]


def metric(results: Results) -> str:
    """The headline metric, e.g. accuracy; a run that broke before its data were read has none."""
    return str(results["metric"] or "score")


def mark(results: Results) -> str:
    """What stands behind every score when eval samples are known from training."""
    return "*" if (results.get("data") or {}).get("leaks") else ""


def leak(results: Results) -> str:
    """Why no score of a run is to be trusted; empty where nothing was trained on eval samples."""
    leaks = (results.get("data") or {}).get("leaks")
    untrusted = "data.allow_leak let it pass: no score is to be trusted"
    return f"{wording(leaks)}; {untrusted}" if leaks else ""


def lines(results: Results) -> Iterator[str]:
    """What the table has no room for: sizes of the networks, the gain, what the numbers rest on."""
    if why := leak(results):
        yield f"* leak   {why}"
    marked = f" {mark(results)}".rstrip()
    yield from _sizes(results)
    yield from (line + marked for line in _distilled(results))
    yield from _samples(results)
    yield from _conditions(results)
    yield from _slow(results)
    yield from (line + marked for line in _scores(results))
    if power := results["gate"].get("power"):
        yield f"power    {power['sentence']}"
    if results["artifacts"] or results["teacher"]:
        yield LEGEND


def _scores(results: Results) -> Iterator[str]:
    """The metric at every hop, where it was lost, and what the task reports beside it."""
    if hops := results["waterfall"]:
        yield f"hops     {', '.join(_hop(hop, metric(results)) for hop in hops)}"
    yield from _lost(results)
    yield from _details(results)


def _sizes(results: Results) -> Iterator[str]:
    """How much smaller the student is."""
    teacher, student = results["teacher"], results["student"]
    if teacher and student and teacher["parameters"] and student["parameters"]:
        share = student["parameters"] / teacher["parameters"]
        yield (
            f"student  {student['parameters']:,} parameters, {share:.0%} of the teacher's "
            f"{teacher['parameters']:,}"
        )


def _distilled(results: Results) -> Iterator[str]:
    """What its teacher and what int8 did to the student."""
    if control := results["control"]:
        yield f"gain     {_gain(control['gain'])} against the control without distillation"
    if quantized := results.get("quantized"):
        yield f"int8     {_steps(quantized)}"
        if search := quantized.get("search"):
            yield from returned.lines(search)


def _samples(results: Results) -> Iterator[str]:
    """What the numbers of the table rest on; alike for all artifacts of a run."""
    for row in results["artifacts"][:1]:
        latency = row["latency_ms"]
        measured = (
            f"; latency: {latency['processes']} fresh processes of each model, "
            f"{latency['iterations']} iterations of {row['id']}"
            if latency
            else ""
        )
        yield f"samples  {row['samples']} eval samples{measured}"


def _conditions(results: Results) -> Iterator[str]:
    """What no difference looks like, and what disturbed the measuring of each artifact."""
    for row in results["artifacts"]:
        floor, found = row.get("noise_floor"), row.get("conditions") or {}
        said = []
        if floor and floor["floor"] is not None:
            pairs = f"{floor['processes']} processes each"
            said.append(f"differs from itself by up to {_percent(floor['floor'])} ({pairs})")
        said += found.get("disturbances", ())
        if said:
            yield f"noise    {row['id']} {'; '.join(said)}"


def _percent(share: float) -> str:
    """Rounded up. Example: 0.0213 -> 2.2 %"""
    return f"{math.ceil(share * 1000 - 1e-6) / 10:.1f} %"


def _lost(results: Results) -> Iterator[str]:
    """Where artifacts lost what they certainly lost, unless a failed rule says it already."""
    told = {v["artifact"] for v in results["gate"]["rules"] if v["verdict"] == "FAIL"}
    for row in results["artifacts"]:
        if row.get("guilty") and row["id"] not in told:
            yield f"lost     {row['id']}: {row['blame']}"


def _hop(hop: Mapping[str, Any], name: str) -> str:
    """Example: quantized 0.9911±0.0112 (drop +0.0045 <+0.0158)"""
    lost = f" (drop {drop(hop['drop'])})" if hop["hop"] != "teacher" else ""
    return f"{hop['hop']} {_scored(hop, name)}{lost}"


def _scored(row: Mapping[str, Any], name: str) -> str:
    """A score with its spread, which results of an earlier kdpipe do not have."""
    return score(row, name) if "low" in row else fraction(row[name])


def _slow(results: Results) -> Iterator[str]:
    """Artifacts that are slower than their fp32 twins beyond doubt, unless a rule says it already.

    Example: openvino-int8 runs 0.81x as fast as its fp32 twin: in float: ...; try another target
    """
    rules = results["gate"]["rules"]
    judged = {v["artifact"] for v in rules if v["rule"].get("against") == "fp32"}
    for row in results["artifacts"]:
        twin = row["speedup_fp32"]
        if twin and row["id"] not in judged and (twin["high"] or math.inf) < 1:
            slower = f"slow     {row['id']} runs {twin['ratio']:.2f}x as fast as its fp32 twin"
            # Results of an earlier kdpipe have no diagnosis.
            yield f"{slower}: {why}" if (why := row.get("diagnosis")) else slower


def _details(results: Results) -> Iterator[str]:
    """What the task reports beside its headline metric, as far as its spread is known."""
    judged = {"teacher": results["teacher"], **{row["id"]: row for row in results["artifacts"]}}
    for name, row in judged.items():
        quality = (row or {}).get("quality") or {}
        shown = [
            f"{metric} {score(quality[metric], 'value')}"
            for metric in (row or {}).get("details") or {}
            if metric in quality
        ]
        if shown:
            yield f"also     {name}: {', '.join(shown)}"


def _steps(quantized: Mapping[str, Any]) -> str:
    """Example: qat, in PyTorch: student 0.9733±0.0161 -> 0.9711±0.0166 (drop +0.0022 <+0.0081)"""
    steps = [
        f"{name} {_side(step, 'fp32')} -> {_side(step, 'int8')} (drop {drop(step['drop'])})"
        for name, step in ((name, quantized[name]) for name in ("student", "control"))
        if step
    ]
    return f"{quantized['mode']}, in {quantized['runtime']}: {', '.join(steps)}"


def _side(step: Mapping[str, Any], name: str) -> str:
    return _scored({name: step[name], **step.get("bounds", {}).get(name, {})}, name)


def _gain(gain: Mapping[str, Any]) -> str:
    pairs = f"{gain['pairs']} seed{'s' if gain['pairs'] > 1 else ''}"
    if gain["low"] is None:
        why = "no interval from one" if gain["pairs"] == 1 else "all alike, so no interval"
        return f"{gain['mean']:+.4f} ({pairs}; {why})"
    return f"{gain['mean']:+.4f} (90 % interval {gain['low']:+.4f} to {gain['high']:+.4f}, {pairs})"


def judgements(results: Results) -> Iterator[str]:
    """One sentence per rule, failures first; then what was skipped or broke.

    A rule that is not required is an advice when it fails.
    """
    order = ("FAIL", "UNDECIDED", "PASS")
    for verdict in sorted(results["gate"]["rules"], key=lambda v: order.index(v["verdict"])):
        word = {"PASS": "pass", "UNDECIDED": "UNDEC"}.get(verdict["verdict"], verdict["verdict"])
        if not verdict.get("required", True) and word != "pass":
            word = "advis"
        yield f"{word:<5}  {verdict['artifact']}: {verdict['reason']}"
    for aside in results["gate"]["skipped"]:
        yield f"SKIP   {aside['artifact']}: {_rule(aside['rule'])} was not judged"
    for skipped in results["skipped"]:
        yield f"SKIP   {skipped['id']}: {skipped['reason']}; {skipped['fix']}"
    for failed in results["failed"]:
        yield f"ERROR  {failed['step']}: {failed['error']}"


def _rule(rule: Mapping[str, Any]) -> str:
    """Example: latency_p95_ms max 2"""
    limits = Rule.model_validate(rule).limits
    return " ".join([rule["metric"], *(f"{name} {value:g}" for name, value in limits.items())])
