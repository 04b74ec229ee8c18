"""`results.collect`: what a finished chain says, derived from what it stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.stages import results

KEYS = [
    "task", "metric", "data", "teacher", "student", "control", "quantized", "waterfall",
    "parity", "artifacts",
]  # fmt: skip
NETWORK = {
    "model", "arguments", "substitute", "parameters", "macs", "accuracy", "low", "high", "samples",
    "details", "quality",
}  # fmt: skip
ROW = {
    "id", "target", "precision", "path", "sha256", "size_bytes", "accuracy", "low", "high",
    "samples", "details", "quality", "drop", "agreement", "agreement_bounds", "latency_ms",
    "fp32_latency_ms", "teacher_latency_ms", "speedup", "speedup_fp32", "noise_floor", "outliers",
    "conditions", "around", "sweep", "energy", "start_ms", "memory_bytes", "memory_processes",
    "memory_peak_bytes", "memory_of_processes_bytes", "int8_fraction", "kernels", "float_kernels",
    "layers", "unfused", "conversions", "diagnosis", "blame", "guilty", "machine",
}  # fmt: skip


@pytest.fixture(scope="module")
def found(chain) -> dict[str, Any]:
    """The results of the whole chain."""
    return results.collect(chain.outputs)


def test_it_is_json(found) -> None:
    """Strict JSON: no NaN, no infinity, no numpy number; and it reads back the same."""
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_keys_are_those_that_are_documented(found) -> None:
    """The keys of the whole, of a network and of an artifact."""
    assert list(found) == KEYS
    assert set(found["teacher"]) == NETWORK
    assert set(found["student"]) == NETWORK - {"quality"}
    assert all(set(row) == ROW for row in found["artifacts"])
    assert found["data"] == {
        "source": "digits: 1797 of scikit-learn",
        "classes": 10,
        "shape": [1, 16, 16],
        "train": 200,
        "eval": 100,
        "groups": None,
        "calibration": 64,
        "leaks": {},
    }


def numbers(found: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object that holds a number, with its place."""
    if isinstance(found, dict):
        if any(isinstance(value, float) for value in found.values()):
            yield path, found
        for name, value in found.items():
            yield from numbers(value, f"{path}.{name}")


def test_every_measured_number_has_its_bounds_and_its_n(found) -> None:
    """In what a row says of times, memory, starts and agreement; exact numbers have neither."""
    counted = {"processes", "samples", "iterations", "calls", "n"}
    for row in found["artifacts"]:
        parts = {
            *("latency_ms", "fp32_latency_ms", "teacher_latency_ms", "speedup", "speedup_fp32"),
            *("noise_floor", "around", "start_ms", "memory_of_processes_bytes"),
        }
        for place, each in numbers({name: row[name] for name in parts}):
            if not each.keys() <= {"low", "high"}:
                assert each.keys() & {"low", "bounds"}, place
                assert each.keys() & counted, place
        assert row["memory_of_processes_bytes"]["peak"]["median"] == pytest.approx(
            row["memory_peak_bytes"], abs=1
        )
        assert row["agreement_bounds"]["low"] <= row["agreement"] <= row["agreement_bounds"]["high"]
        assert "unavailable" in row["energy"]["artifact"] or row["energy"]["artifact"]["bounds"]
    for hop in found["waterfall"]:
        assert hop["low"] <= hop["accuracy"] <= hop["high"]
    for step in (found["quantized"]["student"], found["quantized"]["control"]):
        assert step["samples"] == 100
        assert step["bounds"]["int8"]["low"] <= step["int8"] <= step["bounds"]["int8"]["high"]


def keys(found: Any) -> set[str]:
    """The names of all fields of an object, and of those inside it."""
    inside = found.values() if isinstance(found, dict) else found
    nested = [keys(each) for each in inside if isinstance(each, dict | list)]
    return set[str]().union(*nested, found if isinstance(found, dict) else ())


def test_what_stands_inside_a_row_is_documented(found) -> None:
    """Every name inside what was measured stands in docs/results.md, apart from the digits of
    processes."""
    text = (Path(__file__).resolve().parents[3] / "docs/results.md").read_text("utf-8")
    parts = {
        *("drop", "agreement_bounds", "latency_ms", "speedup", "noise_floor", "outliers"),
        *("conditions", "around", "energy", "start_ms", "memory_of_processes_bytes"),
    }
    names = set[str]().union(*(keys(row[part]) for row in found["artifacts"] for part in parts))
    names |= keys(found["waterfall"]) | keys(found["quantized"]) | keys(found["data"])

    assert [name for name in sorted(names) if not name.isdigit() and f"`{name}`" not in text] == []


def test_the_waterfall_has_every_hop_in_order(chain, found) -> None:
    """From the teacher to the compiled files; the first one loses nothing against itself."""
    waterfall = found["waterfall"]

    assert [hop["hop"] for hop in waterfall] == [
        "teacher", "student", "quantized", "onnx fp32", "onnx int8",
        "onnxruntime-int8", "openvino-int8",
    ]  # fmt: skip
    assert waterfall[0]["drop"]["mean"] == 0
    teacher = waterfall[0]["accuracy"]
    assert teacher == pytest.approx(chain.teacher.outcome.mean)
    assert any(hop["drop"]["mean"] != 0 for hop in waterfall)
    for hop in waterfall:
        drop = hop["drop"]
        assert hop["samples"] == 100
        assert drop["mean"] == pytest.approx(teacher - hop["accuracy"])
        assert drop["low"] <= drop["mean"] <= drop["high"]


def test_the_gain_is_the_mean_over_pairs(chain, found) -> None:
    """Distilled minus control, seed by seed, with bounds from two seeds on."""
    control, pairs = found["control"], chain.distill.pairs
    gains = [pair["distilled"] - pair["control"] for pair in pairs]

    assert control["seeds"] == [0, 1]
    assert control["gain"]["mean"] == pytest.approx(np.mean(gains))
    assert control["gain"]["low"] <= control["gain"]["mean"] <= control["gain"]["high"]
    assert control["gain"]["pairs"] == 2
    assert control["controls"] == [pair["control"] for pair in pairs]
    assert control["distilled"] == [pair["distilled"] for pair in pairs]


def test_a_row_says_what_was_measured(chain, found) -> None:
    """Digest, size and score of the artifact; its latencies are quantiles of the raw samples."""
    for row in found["artifacts"]:
        evidence = chain.measured[row["id"]].evidence
        pooled = np.concatenate(evidence.latency["artifact"].processes)

        assert row["sha256"] == chain.compiled[row["id"]].roles["artifact"]["sha256"]
        assert row["machine"] == chain.measured[row["id"]].meta["machine"]
        assert row["accuracy"] == pytest.approx(float(evidence.score.mean()))
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["agreement"] == pytest.approx(float(evidence.agreement.mean()))
        assert row["latency_ms"]["p50"] == pytest.approx(np.median(pooled))
        assert row["memory_bytes"] == pytest.approx(np.median(evidence.memory["artifact"]), abs=1)
        assert row["memory_processes"] == 3
        assert row["latency_ms"]["iterations"] == len(pooled)
        assert row["latency_ms"]["processes"] == row["speedup"]["processes"] == 2
        assert row["speedup"]["low"] <= row["speedup"]["ratio"] <= row["speedup"]["high"]


def test_the_speedup_is_a_ratio_of_process_means(chain, found) -> None:
    """Teacher over artifact, of the geometric mean over each process's mean log-latency."""
    for row in found["artifacts"]:
        latency = chain.measured[row["id"]].evidence.latency
        logs = {
            role: np.mean([np.log(process).mean() for process in timing.processes])
            for role, timing in latency.items()
        }

        ratio = np.exp(logs["teacher"] - logs["artifact"])
        assert row["speedup"]["ratio"] == pytest.approx(ratio)


def test_an_unfinished_chain_says_what_there_is(chain) -> None:
    """Nothing at all, or a run that stopped after the teacher: None and empty lists, no error."""
    nothing = results.collect({})
    begun = results.collect(
        {"data": chain.data, "teacher": chain.teacher, "student": chain.student}
    )

    assert list(nothing) == KEYS
    assert not any(nothing.values())
    assert set(begun["teacher"]) == NETWORK
    assert begun["student"] is None
    assert [hop["hop"] for hop in begun["waterfall"]] == ["teacher"]


def test_without_a_student_the_teacher_ships(chain) -> None:
    """With `student: null` the network that ships is the teacher, and there is no control."""
    found = results.collect({"data": chain.data, "teacher": chain.teacher})

    assert found["student"] == {n: v for n, v in found["teacher"].items() if n != "quality"}
    assert found["control"] is None


def test_artifacts_are_found_by_their_ids(chain) -> None:
    """The files that a bundle would take are the compiled artifacts."""
    paths = results.files(chain.outputs)

    assert paths == {id: c.path("artifact") for id, c in chain.compiled.items()}
    assert all(path.exists() for path in paths.values())
    assert list(results.measurements(chain.outputs)) == ["onnxruntime-int8", "openvino-int8"]
