"""The command line end to end: real tiny runs, whole outputs, and one test for each exit code."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

RUN_DIR = Path(".kdpipe/runs/tiny")
ANY_SPEED = "{metric: speedup, against: fp32, min: 0.001}"
"""Whether int8 pays in a network this tiny is up to the machine: no such rule of its own stands."""


def masked(text: str) -> str:
    """Numbers that differ from machine to machine, with their sign, as one `#` each."""
    return re.sub(r"[-+]?\d(?:[\d,.]*\d)?", "#", text)


def results(project: Any) -> dict[str, Any]:
    """The results of the project's last run."""
    found: dict[str, Any] = json.loads((project.folder / RUN_DIR / "results.json").read_text())
    return found


def stored(tiny: Any, step: str) -> Path:
    """Where the store has what the last run of `tiny.yaml` took from it."""
    events = map(json.loads, (tiny.folder / RUN_DIR / "journal.jsonl").read_text().splitlines())
    *_, key = (e["key"] for e in events if e.get("step") == step and e["event"] == "reused")
    return Path(tiny.folder, ".kdpipe/objects", key)


def test_run_prints_each_step_once(tiny: Any) -> None:
    """In a pipe, stderr holds one line when a step starts and one when it is done."""
    lines = (tiny.folder / "first.err").read_text().splitlines()

    steps = ["data", "teacher", "student", "distill", "quantize", "export"]
    steps += [f"compile[{t}-int8]" for t in ("onnxruntime", "openvino")]
    steps += [f"benchmark[{t}-int8]" for t in ("onnxruntime", "openvino")]
    assert [line.split()[:2] for line in lines if line.split()[0] not in ("...", "warn")] == [
        [word, step] for step in steps for word in ("run", "done")
    ]


def test_run_ends_with_the_verdict(tiny: Any) -> None:
    """The last line on stdout says how it ended, the first word being the verdict."""
    last = (tiny.folder / "first.out").read_text().splitlines()[-1]

    assert last == "PASSED | 8 of 8 rules passed"


def test_run_prints_the_summary(tiny: Any) -> None:
    """The whole of stdout, in a pipe: one record for each model, one sentence for each rule.

    Whether int8 pays in a network this tiny is up to the machine: the line that says so may come.
    """
    record = "accuracy=#±# drop=#<# p#=#±? p#=#±? speed=#x±? size=#KiB"
    accuracy = "accuracy drop against the teacher # (# % bounds # to #, # samples)"
    size = "size # bytes (exact) keeps the limit of at most # bytes"
    speed = "speedup over its fp# twin #x (# % bounds #x to #x, # processes) keeps the limit of at "
    speed += "least #x"
    share = "int# fraction # (exact) keeps the limit of at least #"
    names = ("student", "quantized", "onnx fp#", "onnx int#", "onnxruntime-int#", "openvino-int#")
    hops = ", ".join(["teacher #±#", *(f"{name} #±# (drop # <#)" for name in names)])

    # Whether so few calls can bound a percentile is up to the machine, too.
    lines = masked((tiny.folder / "first.out").read_text()).replace("±#%", "±?").splitlines()
    told = ("slow ", "noise ", "lost ", "power ", "spread ")
    assert [line for line in lines if not line.startswith(told)] == [
        "",
        "ref teacher accuracy=#±#",
        "- student-(PyTorch) accuracy=#±# drop=#<#",
        "- control,-no-KD accuracy=#±?",
        f"pass onnxruntime-int# {record}",
        f"pass openvino-int# {record}",
        "",
        "student  # parameters, #% of the teacher's #",
        "gain     # (# seed; no interval from one) against the control without distillation",
        "int#     ptq, in PyTorch: student #±# -> #±# (drop # <#), control #±# -> #±# (drop # <#)",
        "samples  # eval samples; latency: # fresh processes of each model, # iterations of "
        "onnxruntime-int#",
        f"hops     {hops}",
        "",
        f"pass   onnxruntime-int#: {accuracy} keeps the limit of at most #",
        f"pass   openvino-int#: {accuracy} keeps the limit of at most #",
        f"pass   onnxruntime-int#: {size}",
        f"pass   openvino-int#: {size}",
        f"pass   onnxruntime-int#: {speed}",
        f"pass   openvino-int#: {speed}",
        f"pass   onnxruntime-int#: {share}",
        f"pass   openvino-int#: {share}",
        "",
        "results  .kdpipe/runs/tiny/results.json",
        "files    .kdpipe/runs/tiny/artifacts",
        "PASSED | # of # rules passed",
    ]


def test_results_hold_what_is_documented(tiny: Any) -> None:
    """results.json has its schema, every network, every hop and every artifact."""
    found = results(tiny)

    assert found["schema"] == "kdpipe.results/1"
    assert found["student"]["parameters"] < found["teacher"]["parameters"]
    assert found["control"]["gain"]["pairs"] == 1
    assert [hop["hop"] for hop in found["waterfall"]] == [
        "teacher",
        "student",
        "quantized",
        "onnx fp32",
        "onnx int8",
        "onnxruntime-int8",
        "openvino-int8",
    ]
    for artifact in found["artifacts"]:
        assert (tiny.folder / RUN_DIR / artifact["path"]).exists()
        assert artifact["int8_fraction"] > 0.8
        assert artifact["latency_ms"]["iterations"] == 80
        assert artifact["samples"] == 150
    assert {verdict["verdict"] for verdict in found["gate"]["rules"]} == {"PASS"}
    assert (found["verdict"], found["exit_code"]) == ("PASSED", 0)


def test_second_run_runs_nothing(tiny: Any) -> None:
    """The same config again reuses every stage, and torch is not even imported."""
    again = tiny.kdpipe("run", "tiny.yaml", PYTHONPROFILEIMPORTTIME="1")

    assert again.returncode == 0
    assert results(tiny)["run"]["ran"] == []
    assert again.stdout == (tiny.folder / "first.out").read_text()
    assert not re.search(r"\| +torch$", again.stderr, re.MULTILINE)


def test_plan_names_the_key_that_changed(tiny: Any) -> None:
    """`plan` says which setting changed, and what hangs on it; it runs nothing."""
    plan = tiny.kdpipe("plan", "tiny.yaml", "--set", "distill.epochs=4")

    assert plan.returncode == 0
    assert plan.stdout == (
        "stored   data                         nothing it depends on changed\n"
        "stored   teacher                      nothing it depends on changed\n"
        "stored   student                      nothing it depends on changed\n"
        "run      distill                      `distill.epochs` 3 -> 4\n"
        "run      quantize                     after distill\n"
        "run      export                       after distill, quantize\n"
        "run      compile[onnxruntime-int8]    after export\n"
        "run      compile[openvino-int8]       after export\n"
        "run      benchmark[onnxruntime-int8]  after distill, quantize, export, "
        "compile[onnxruntime-int8]\n"
        "run      benchmark[openvino-int8]     after distill, quantize, export, "
        "compile[openvino-int8]\n"
        "\n7 of 10 steps will run\n"
    )


def test_changed_key_reruns_what_hangs_on_it(tiny: Any) -> None:
    """What `plan` said is what `run` does."""
    changed = tiny.kdpipe(
        "run", "tiny.yaml", "--set", "benchmark.iterations=41", "--run-dir", "other"
    )

    ran = json.loads((tiny.folder / "other/results.json").read_text())["run"]["ran"]
    assert changed.returncode == 0
    assert ran == ["benchmark[onnxruntime-int8]", "benchmark[openvino-int8]"]


def test_json_is_all_there_is_on_stdout(tiny: Any) -> None:
    """`--json` prints what `results.json` holds, and the exit code stays."""
    run = tiny.kdpipe("run", "tiny.yaml", "--json")

    assert run.returncode == 0
    assert json.loads(run.stdout)["verdict"] == "PASSED"
    assert json.loads(run.stdout) == results(tiny)
    part = tiny.kdpipe("run", "tiny.yaml", "--to", "data", "--run-dir", "part", "--json")
    assert json.loads(part.stdout)["exit_code"] == part.returncode == 0


def test_a_reader_that_leaves_is_told_nothing(tiny: Any) -> None:
    """As behind `| head`: no message about a broken pipe."""
    process = tiny.start("methods", "--markdown")
    process.stdout.read(1)
    process.stdout.close()

    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()


def test_gate_judges_again_without_measuring(tiny: Any) -> None:
    """`gate` reads a run's folder alone: it works where the store and the config are gone."""
    copy = tiny.folder / "copy"
    shutil.copytree(tiny.folder / RUN_DIR, copy)
    gate = tiny.kdpipe("gate", "copy")

    assert gate.returncode == 0
    assert gate.stdout.splitlines()[-1] == "PASSED | 8 of 8 rules passed"


def test_gate_refuses_an_artifact_that_was_not_measured(tiny: Any) -> None:
    """One changed byte in the artifact, and nothing that was proven counts any more."""
    copy = tiny.folder / "tampered"
    shutil.copytree(tiny.folder / RUN_DIR, copy)
    artifact = copy / "artifacts/onnxruntime-int8/model.onnx"
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    artifact.write_bytes(content)
    gate = tiny.kdpipe("gate", "tampered")

    assert gate.returncode == 3
    assert gate.stdout.splitlines()[-1] == (
        "FAILED | onnxruntime-int8: the file is not the one that was measured"
    )


# --- exit codes ---------------------------------------------------------------------------------


def test_exit_1_when_a_stage_fails(tiny: Any) -> None:
    """A training that diverges names the term and the step, and keeps what was finished."""
    failed = tiny.kdpipe(
        "run", "tiny.yaml", "--run-dir", "x1", "--set", "distill.learning_rate=1.0e+20"
    )

    assert failed.returncode == 1
    assert re.match(
        r"FAILED \| distill: the loss is no longer finite at epoch \d+, step \d+: student<-",
        failed.stdout.splitlines()[-1],
    )
    assert "Traceback" not in failed.stderr
    assert tiny.kdpipe("plan", "tiny.yaml").stdout.endswith("\n0 of 10 steps will run\n")


def test_exit_2_names_every_problem_at_once(tiny: Any) -> None:
    """An unknown key and a wrong type: both places, what is allowed, and nothing runs."""
    (tiny.folder / "wrong.yaml").write_text(
        "data: {source: digits}\nteacher: {model: resnet8}\n"
        "targets:\n  - {name: onnxruntime, precission: int8}\ndistill: {epochs: many}\n"
    )
    wrong = tiny.kdpipe("run", "wrong.yaml")

    assert wrong.returncode == 2
    assert "targets[0].precission: unknown key\n  --> wrong.yaml:4:25" in wrong.stderr
    assert "did you mean `precision`?" in wrong.stderr
    assert "distill.epochs: 'many' is not a whole number\n  --> wrong.yaml:5:19" in wrong.stderr
    assert wrong.stdout == "FAILED | 2 errors in wrong.yaml; nothing was run.\n"
    assert not (tiny.folder / ".kdpipe/runs/wrong").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.source={kind: idx, folder: nowhere}", "nowhere"),
        ("teacher={model: resnet8, weights: gone.safetensors}", "gone.safetensors"),
        ("data={source: {kind: npz, file: bad_labels.npz}}", "out of range"),
        ("data={source: {kind: npz, file: no_eval.npz}}", "eval"),
    ],
    ids=["missing folder", "missing weights", "label out of range", "eval empty"],
)
def test_exit_2_for_bad_data(tiny: Any, setting: str, message: str) -> None:
    """Missing files, labels out of range and an empty eval set are the user's to mend."""
    import numpy as np

    images = np.zeros((8, 8, 8), np.uint8)
    labels = np.arange(8) % 2
    split = {"train_images": images, "train_labels": labels}
    np.savez(tiny.folder / "bad_labels.npz", **split, eval_images=images, eval_labels=labels - 1)
    np.savez(tiny.folder / "no_eval.npz", **split, eval_images=images[:0], eval_labels=labels[:0])
    bad = tiny.kdpipe("run", "tiny.yaml", "--run-dir", "x2", "--set", setting)

    assert bad.returncode == 2, bad.stdout + bad.stderr
    assert message in bad.stdout + bad.stderr
    assert "Traceback" not in bad.stderr


def test_exit_2_for_usage(tiny: Any) -> None:
    """A missing config, an unknown stage and an unknown option exit 2 with a hint."""
    missing = tiny.kdpipe("run", "tinny.yaml")
    stage = tiny.kdpipe("run", "tiny.yaml", "--to", "exprot")
    option = tiny.kdpipe("run", "tiny.yaml", "--stor", "x")

    assert (missing.returncode, stage.returncode, option.returncode) == (2, 2, 2)
    assert "tiny.yaml" in missing.stderr
    assert "found: data, teacher, student" in stage.stderr
    assert "--store" in option.stderr


def test_exit_3_when_the_gate_fails(tiny: Any) -> None:
    """An impossible rule fails the gate; nothing is measured again."""
    rule = f"gate=[{{metric: size_bytes, max: 1}}, {ANY_SPEED}]"
    impossible = tiny.kdpipe("run", "tiny.yaml", "--run-dir", "x3", "--set", rule)

    assert impossible.returncode == 3
    assert masked(impossible.stdout.splitlines()[-1]) == (
        "FAILED | onnxruntime-int#: size # bytes (exact) breaks the limit of at most # bytes; "
        "# of # rules passed, # failed"
    )


def test_exit_4_when_a_required_target_is_missing(tiny: Any) -> None:
    """A required target that cannot run here ends the run before anything is trained."""
    blocked = tiny.kdpipe("run", "tiny.yaml", "--run-dir", "x4", "--set", "targets=[tensorrt]")

    assert blocked.returncode == 4
    assert "pip install 'kdpipe[tensorrt]'" in blocked.stderr
    assert blocked.stdout.startswith("FAILED | target tensorrt-int8 is required and cannot run")


def test_an_optional_target_is_skipped_with_its_reason(tiny: Any) -> None:
    """The same target with required: false is SKIP, named, and the rest is judged."""
    skipped = tiny.kdpipe(
        "run",
        "tiny.yaml",
        "--run-dir",
        "x4b",
        "--set",
        "targets=[onnxruntime, openvino, {name: tensorrt, required: false}]",
    )

    assert skipped.returncode == 0
    assert "SKIP   tensorrt-int8: the Python package 'tensorrt' is not installed" in skipped.stdout
    assert skipped.stdout.endswith("PASSED | 8 of 8 rules passed, 1 target skipped\n")


def test_exit_5_for_a_percentile_of_too_few(tiny: Any) -> None:
    """p99 of 80 iterations is undecided, and the number that would do is named."""
    rule = f"gate=[{{metric: latency_p99_ms, max: 1000}}, {ANY_SPEED}]"
    undecided = tiny.kdpipe("run", "tiny.yaml", "--run-dir", "x5", "--set", rule)

    assert undecided.returncode == 5
    assert undecided.stdout.splitlines()[-1].startswith("FAILED | not enough evidence: ")
    assert "299 iterations" in undecided.stdout


def test_exit_5_for_a_margin_that_the_samples_cannot_decide(tiny: Any) -> None:
    """A margin just above the measured drop is undecided, and says how many samples would do."""
    drop = max(artifact["drop"]["mean"] for artifact in results(tiny)["artifacts"])
    lost = f"{{metric: accuracy, max-degradation: {max(drop, 0) + 0.001:.6f}}}"
    rule = f"gate=[{lost}, {ANY_SPEED}]"
    undecided = tiny.kdpipe("run", "tiny.yaml", "--run-dir", "x5", "--set", rule)

    assert undecided.returncode == 5
    assert re.search(r"about [\d,]+ samples", undecided.stdout.splitlines()[-1])


def test_exit_130_and_the_next_run_resumes(tiny: Any) -> None:
    """Ctrl-C keeps what is finished; the same command again goes on from there."""
    arguments = ("run", "tiny.yaml", "--store", "fresh", "--to", "teacher")
    settings = ("--set", "teacher.train.epochs=60")
    process = tiny.start(*arguments, *settings)
    checkpoints = tiny.folder / "fresh/scratch"
    for _ in range(600):
        if list(checkpoints.glob("teacher-*/teacher.pt")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "what is finished is kept" in stderr
    assert stdout == "FAILED | interrupted; what is finished is kept\n"
    plan = tiny.kdpipe("plan", *arguments[1:], *settings).stdout.splitlines()
    assert [line.split()[:2] for line in plan[:2]] == [["stored", "data"], ["run", "teacher"]]
    assert list(checkpoints.glob("teacher-*/teacher.pt"))


def test_a_corrupted_output_is_noticed_and_made_again(tiny: Any) -> None:
    """One flipped byte in the store is seen before the file is used, told, and repaired."""
    tiny.kdpipe("run", "tiny.yaml")
    entry = stored(tiny, "benchmark[openvino-int8]") / "evidence.npz"
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.chmod(0o644)
    entry.write_bytes(content)
    again = tiny.kdpipe("run", "tiny.yaml")

    assert again.returncode == 0
    assert "DAMAGED benchmark[openvino-int8]" in again.stderr
    assert "evidence.npz" in again.stderr
    assert results(tiny)["run"]["ran"] == ["benchmark[openvino-int8]"]


# --- the other verbs ----------------------------------------------------------------------------


def test_only_needs_what_it_reads(tiny: Any) -> None:
    """`--only` redoes one stage, and refuses when what it reads is not stored."""
    lacking = tiny.kdpipe("run", "tiny.yaml", "--only", "export", "--store", "empty")
    again = tiny.kdpipe("run", "tiny.yaml", "--only", "student")

    assert lacking.returncode == 2
    assert "data is not stored" in lacking.stderr
    assert again.returncode == 0
    assert again.stdout == "STOPPED | after student, as asked: nothing was judged\n"


def test_bench_compares_two_files(tiny: Any) -> None:
    """`bench` measures any ONNX file, against another one in turns."""
    tiny.kdpipe("run", "tiny.yaml")
    folder = stored(tiny, "export")
    bench = tiny.kdpipe(
        "bench",
        str(folder / "student.fp32.onnx"),
        "--target=onnxruntime",
        f"--against={folder / 'teacher.onnx'}",
        "--processes=2",
        "--iterations=5",
        "--json",
    )

    measured = json.loads(bench.stdout)
    assert bench.returncode == 0
    assert measured["speedup"]["processes"] == 2
    assert measured["models"]["model"]["size_bytes"] < measured["models"]["against"]["size_bytes"]


def test_doctor_says_what_is_missing(tiny: Any) -> None:
    """`doctor` exits 0 although an optional target is missing, and 4 when a config requires it."""
    (tiny.folder / "gpu.yaml").write_text(
        "data: {source: digits}\nteacher: {model: resnet8}\ntargets: [tensorrt]\n"
    )
    alone = tiny.kdpipe("doctor")
    asked = tiny.kdpipe("doctor", "gpu.yaml")

    assert alone.returncode == 0
    assert "pip install 'kdpipe[tensorrt]'" in alone.stdout
    assert asked.returncode == 4


def test_lists_are_json_when_asked(tiny: Any) -> None:
    """`targets`, `methods` and `schema` speak JSON."""
    targets = json.loads(tiny.kdpipe("targets", "--json").stdout)
    methods = json.loads(tiny.kdpipe("methods", "--json").stdout)
    schema = json.loads(tiny.kdpipe("schema").stdout)

    assert [row["name"] for row in targets] == ["onnxruntime", "openvino", "tensorrt"]
    assert methods[0]["kind"] == "kd"
    assert schema["properties"]["distill"]["description"]


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["plan", "tiny.yaml"]])
def test_quick_verbs_import_no_heavy_package(tiny: Any, arguments: list[str]) -> None:
    """Help, plan and schema answer without torch, any runtime, scikit-learn or scipy."""
    answer = tiny.kdpipe(*arguments, PYTHONPROFILEIMPORTTIME="1")

    heavy = r"\| +(torch|onnx|onnxruntime|openvino|sklearn|scipy)$"
    assert answer.returncode == 0
    assert not re.findall(heavy, answer.stderr, re.MULTILINE)
