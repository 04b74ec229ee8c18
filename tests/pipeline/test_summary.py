"""The summary at any width: the verdict first, every name and every number whole."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kdpipe.pipeline.spread import LEGEND, percent, score, size
from kdpipe.pipeline.summary import render

LONG = "my-own-accelerator-with-a-very-long-name"


def artifact(name: str, **changes: Any) -> dict[str, Any]:
    """The row of one artifact in results.json, as far as the summary reads it."""
    return {
        "id": name,
        "accuracy": 0.9712,
        "low": 0.9545,
        "high": 0.9822,
        "samples": 450,
        "drop": {"mean": 0.0089, "low": -0.0012, "high": 0.019},
        "latency_ms": {
            "p50": 12.345,
            "p95": 23.456,
            "bounds": {"p50": {"low": 12.1, "high": 12.5}, "p95": {"low": 22.0, "high": None}},
            "processes": 10,
            "iterations": 1000,
        },
        "speedup": {"ratio": 5.21, "low": 5.0, "high": 5.4},
        "speedup_fp32": {"ratio": 2.04, "low": 1.91, "high": 2.17},
        "diagnosis": "in float: stem; use relu",
        "size_bytes": 123_456,
        **changes,
    }


def verdict(name: str, word: str) -> dict[str, Any]:
    """One verdict."""
    reason = f"the reason for {word}"
    return {"artifact": name, "verdict": word, "reason": reason, "rule": {"against": "teacher"}}


def results(*names: str, words: tuple[str, ...] = ("PASS",)) -> dict[str, Any]:
    """What results.json holds of a whole run."""
    network = {"accuracy": 0.9801, "low": 0.9701, "high": 0.9871, "parameters": 272_186}
    return {
        "metric": "accuracy",
        "teacher": network,
        "student": {"accuracy": 0.9733, "low": 0.9623, "high": 0.9813, "parameters": 19_506},
        "control": {
            "accuracy": 0.9622,
            "low": 0.95222,
            "high": 0.97218,
            "gain": {"mean": 0.0111, "low": 0.0034, "high": 0.0188, "pairs": 3},
        },
        "waterfall": [
            {
                "hop": "teacher",
                "accuracy": 0.9801,
                "low": 0.9701,
                "high": 0.99,
                "drop": {"mean": 0.0, "high": 0.0},
            },
            {
                "hop": "student",
                "accuracy": 0.9733,
                "low": 0.9623,
                "high": 0.984,
                "drop": {"mean": 0.0068, "high": 0.0151},
            },
        ],
        "artifacts": [artifact(name) for name in names],
        "skipped": [
            {"id": "tensorrt-int8", "target": "tensorrt", "reason": "no GPU", "fix": "buy one"}
        ],
        "failed": [{"step": "compile[x]", "error": "no luck\n  found: a cat", "exit_code": 1}],
        "gate": {
            "rules": [verdict(name, word) for name, word in zip(names, words, strict=True)],
            "skipped": [
                {
                    "rule": {"metric": "latency_p95_ms", "max": 2.0, "target": "tensorrt"},
                    "artifact": "tensorrt-int8",
                    "reason": "no GPU",
                }
            ],
        },
    }


USUAL = results("onnxruntime-int8", "openvino-int8", words=("PASS", "FAIL"))
NUMBERS = ("0.9712±0.0167", "12.345±2%", "5.2x±5%", "0.9801±0.0100", "0.9622±0.0100", "<+0.0151")


def table(lines: list[str]) -> list[str]:
    """The part above the first empty line."""
    return lines[: lines.index("")]


def gates(lines: list[str]) -> dict[str, str]:
    """{second word of a line: its first word}, without the ruler."""
    return {line.split()[1]: line.split()[0] for line in lines if not line.startswith("--")}


def test_whole_table_at_120() -> None:
    """Where there is room, all columns; the verdict is the first, and each number has a spread."""
    assert (
        table(render(USUAL, 120, table=True))
        == """\
gate  artifact                accuracy       drop (95 %)     p50 ms    p95 ms    speed       size
-------------------------------------------------------------------------------------------------
ref   teacher            0.9801±0.0100                 -          -         -        -          -
-     student (PyTorch)  0.9733±0.0110  +0.0068 <+0.0151          -         -        -          -
-     control, no KD     0.9622±0.0100                 -          -         -        -          -
pass  onnxruntime-int8   0.9712±0.0167  +0.0089 <+0.0190  12.345±2%  23.456±?  5.2x±5%  120.6 KiB
FAIL  openvino-int8      0.9712±0.0167  +0.0089 <+0.0190  12.345±2%  23.456±?  5.2x±5%  120.6 KiB
SKIP  tensorrt-int8                  -                 -          -         -        -          -
""".splitlines()
    )


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (120, ["p50", "p95", "speed", "size"]),
        (97, ["p50", "p95", "speed", "size"]),
        (96, ["p50", "speed", "size"]),
        (80, ["p50", "speed"]),
    ],
)
def test_columns_that_fit(width: int, columns: list[str]) -> None:
    """A table that is too wide loses p95 first, the size second; usual names fit in 80 columns."""
    lines = table(render(USUAL, width, table=True))

    assert [word for word in lines[0].split() if word in ("p50", "p95", "speed", "size")] == columns
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [60, 79, 80, 120])
@pytest.mark.parametrize("on_terminal", [True, False])
@pytest.mark.parametrize("words", [("PASS", "FAIL"), ("UNDECIDED", "PASS")])
def test_nothing_is_cut(width: int, on_terminal: bool, words: tuple[str, ...]) -> None:
    """With a name of 40 letters too, every verdict, name and number is whole at every width."""
    lines = table(render(results(LONG, "openvino-int8", words=words), width, table=on_terminal))
    shown = {"PASS": "pass", "FAIL": "FAIL", "UNDECIDED": "UNDEC"}

    assert len(LONG) == 40
    first = gates(lines)
    assert first[LONG] == shown[words[0]]
    assert first["openvino-int8"] == shown[words[1]]
    assert first["tensorrt-int8"] == "SKIP"
    assert [number for number in NUMBERS if number not in "\n".join(lines)] == []


@pytest.mark.parametrize(
    ("width", "on_terminal"), [(60, True), (79, True), (80, False), (120, False)]
)
def test_records(width: int, on_terminal: bool) -> None:
    """In a pipe, and below 80 columns, each row is one record with named values."""
    numbers = (
        "accuracy=0.9712±0.0167 drop=+0.0089<+0.0190 p50=12.345±2% p95=23.456±? speed=5.2x±5% "
        "size=120.6KiB"
    )

    assert table(render(USUAL, width, on_terminal)) == [
        "ref teacher accuracy=0.9801±0.0100",
        "- student-(PyTorch) accuracy=0.9733±0.0110 drop=+0.0068<+0.0151",
        "- control,-no-KD accuracy=0.9622±0.0100",
        f"pass onnxruntime-int8 {numbers}",
        f"FAIL openvino-int8 {numbers}",
        "SKIP tensorrt-int8",
    ]


def test_long_names_become_records_at_80() -> None:
    """Where no table fits even without the columns that may go, there are records."""
    lines = render(results(LONG), 80, table=True)

    assert f"pass {LONG} accuracy=0.9712" in "\n".join(lines)
    assert table(render(results(LONG), 120, table=True))[0].startswith("gate  artifact")


def test_below_the_table() -> None:
    """Sizes, gain and samples; then one line per rule, failures first, and what was not done."""
    lines = render(USUAL, 200, table=True)

    assert lines[lines.index("") + 1 :] == [
        "student  19,506 parameters, 7% of the teacher's 272,186",
        "gain     +0.0111 (90 % interval +0.0034 to +0.0188, 3 seeds) against the control "
        "without distillation",
        "samples  450 eval samples; latency: 10 fresh processes of each model, 1000 iterations of "
        "onnxruntime-int8",
        "hops     teacher 0.9801±0.0100, student 0.9733±0.0110 (drop +0.0068 <+0.0151)",
        LEGEND,
        "",
        "FAIL   openvino-int8: the reason for FAIL",
        "pass   onnxruntime-int8: the reason for PASS",
        "SKIP   tensorrt-int8: latency_p95_ms max 2 was not judged",
        "SKIP   tensorrt-int8: no GPU; buy one",
        "ERROR  compile[x]: no luck",
        "  found: a cat",
    ]


def test_sentences_wrap_between_words_on_a_terminal() -> None:
    """A long sentence goes on below its own first word; in a pipe it stays one line."""
    found = results("x")
    found["gate"]["rules"][0]["reason"] = "word " * 30 + "end"

    lines = render(found, 60, table=True)

    start = next(i for i, line in enumerate(lines) if line.startswith("pass   x: word"))
    assert lines[start + 1].startswith("       word")
    assert max(map(len, lines[start:])) <= 60
    assert any(line.endswith("word end") for line in render(found, 60, table=False))


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0.97, 0.98, "0.9750±0.0050"), (0.97, 0.97504, "0.9750±0.0050"),
     (0.96999, 0.98, "0.9750±0.0051"), (None, 0.98, "0.9750±?")],
)  # fmt: skip
def test_a_spread_is_rounded_up(low: float | None, high: float, shown: str) -> None:
    """The wider side counts, and never looks narrower than it is."""
    assert score({"accuracy": 0.975, "low": low, "high": high}, "accuracy") == shown


def test_a_spread_in_percent() -> None:
    """Of a time or a ratio, rounded up; unknown where a bound is."""
    assert percent(2.0, {"low": 1.9, "high": 2.02}) == "±5%"
    assert percent(2.0, {"low": 1.899, "high": 2.02}) == "±6%"
    assert percent(2.0, {"low": 1.9, "high": None}) == "±?"
    assert percent(2.0, {}) == "±?"


def test_a_rule_that_is_not_required_is_advice() -> None:
    """It has no say in the artifact's word, and its line says so."""
    found = results("a")
    found["gate"]["rules"] = [verdict("a", "PASS"), verdict("a", "FAIL") | {"required": False}]

    lines = render(found, 120, table=True)

    assert gates(table(lines))["a"] == "pass"
    assert "advis  a: the reason for FAIL" in lines


def test_worst_verdict_counts() -> None:
    """An artifact's row shows the worst of its verdicts, and a hyphen where it has none."""
    found = results("a", "b", "c", words=("PASS", "PASS", "PASS"))
    found["gate"]["rules"] = [
        verdict("a", "PASS"), verdict("a", "UNDECIDED"), verdict("b", "UNDECIDED"),
        verdict("b", "FAIL"),
    ]  # fmt: skip

    found = gates(table(render(found, 120, table=True)))

    assert (found["a"], found["b"], found["c"]) == ("UNDEC", "FAIL", "-")


def test_what_was_not_measured() -> None:
    """A run that broke early, and numbers that do not exist, leave hyphens and no exception."""
    found = results("x")
    found |= {"teacher": None, "student": None, "control": None}
    found["artifacts"] = [
        artifact(
            "x",
            latency_ms=None,
            speedup=None,
            drop={"mean": 0.0, "low": None, "high": None},
            high=None,
        )
    ]

    lines = table(render(found, 80, table=True))

    assert " ".join(lines[2].split()) == "pass x 0.9712±? +0.0000 <? - - - 120.6 KiB"
    assert render({**found, "artifacts": [], "skipped": []}, 60, table=True)[0] == ""


def test_gain_of_one_pair() -> None:
    """One seed has no interval, and the summary says so."""
    found = results("x")
    found["control"]["gain"] = {"mean": -0.002, "low": None, "high": None, "pairs": 1}

    assert (
        "gain     -0.0020 (1 seed; no interval from one) against the control without distillation"
        in render(found, 80, table=False)
    )


def test_what_stands_beside_the_metric_has_its_spread() -> None:
    """What the task reports without bounds is left to `results.json`."""
    found = results("x")
    found["teacher"]["details"] = {"dataset_miou": 0.9436, "pixel_accuracy": 0.98, "iou/disc": 0.7}
    found["teacher"]["quality"] = {"dataset_miou": {"value": 0.9436, "low": 0.9, "high": 0.96}}

    lines = [line for line in render(found, 200, table=False) if line.startswith("also")]

    assert lines == ["also     teacher: dataset_miou 0.9436±0.0436"]


def test_every_score_of_a_leak_is_marked() -> None:
    """In the table and in all lines below it; the mark is explained once."""
    found = results("x")
    known = {"known_from": {"train": 3}, "exact": 3, "near": 0, "mirrored": 0, "group": 0}
    found["data"] = {"leaks": {"eval": 3, "share": 0.0067, **known}}

    lines = render(found, 200, table=False)

    scored = [line for line in lines if "accuracy=" in line or line.startswith(("gain", "hops"))]
    assert len(scored) == 6
    assert all(re.search(r"(=\S+\*|\) \*|distillation \*)", line) for line in scored)
    assert sum(line.startswith("* leak   3 eval sample(s)") for line in lines) == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (44_100, "43.1 KiB"), (5_242_880, "5.0 MiB")],
)
def test_size(count: int, text: str) -> None:
    """Bytes as people say them."""
    assert size(count) == text


@pytest.mark.parametrize(
    ("control", "line"),
    [
        (
            {"fp32": 0.9622, "int8": 0.95, "drop": {"mean": 0.0122, "high": None}},
            "int8     qad, in PyTorch: student 0.9733 -> 0.9711 (drop +0.0022 <+0.0100), "
            "control 0.9622 -> 0.9500 (drop +0.0122 <?)",
        ),
        (None, "int8     qad, in PyTorch: student 0.9733 -> 0.9711 (drop +0.0022 <+0.0100)"),
    ],
)
def test_what_int8_costs_stands_in_one_line(control: Any, line: str) -> None:
    """Before and after, of the student and, where it was quantized, of its control."""
    student = {"fp32": 0.9733, "int8": 0.9711, "drop": {"mean": 0.0022, "high": 0.01}}
    quantized = {"mode": "qad", "runtime": "PyTorch", "student": student, "control": control}

    lines = render({**USUAL, "quantized": quantized}, 200, table=True)

    assert line in lines
    assert not any(line.startswith("int8 ") for line in render(USUAL, 120, table=True))


@pytest.mark.parametrize(
    ("high", "against", "told"), [(0.9, "teacher", True), (1.1, "teacher", False),
                                  (None, "teacher", False), (0.9, "fp32", False)]
)  # fmt: skip
def test_int8_that_does_not_pay_is_told(high: float | None, against: str, told: bool) -> None:
    """With what to do about it, where it is beyond doubt and no rule of the gate says it."""
    found = results("openvino-int8")
    found["artifacts"][0]["speedup_fp32"] = {"ratio": 0.8, "low": 0.7, "high": high}
    found["gate"]["rules"][0]["rule"] = {"against": against}

    lines = [line for line in render(found, 200, table=True) if line.startswith("slow")]

    line = "slow     openvino-int8 runs 0.80x as fast as its fp32 twin: in float: stem; use relu"
    assert lines == ([line] if told else [])
