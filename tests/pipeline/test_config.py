"""The whole config: what is left out has its default, what is null is skipped, the rest refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from kdpipe.pipeline.config import Config, schema
from kdpipe.pipeline.published import generated, published
from kdpipe.stages import DEFAULT_RULES, STAGES, Rule
from kdpipe.targets.errors import ConfigError, UsageError

SMALL = """\
data: {source: digits}
teacher: {model: resnet8}
targets: [onnxruntime]
"""


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named as a user in that folder would type them."""
    monkeypatch.chdir(tmp_path)


def read(text: str, *assignments: str) -> Config:
    """The config in a file of this text."""
    path = Path("kdpipe.yaml")
    path.write_text(text)
    return Config.read(path, assignments)


def refused(text: str, *assignments: str) -> str:
    """What the user reads when this text is refused."""
    with pytest.raises(ConfigError) as caught:
        read(text, *assignments)
    assert caught.value.exit_code == 2
    return str(caught.value)


def golden(text: str) -> str:
    """A whole text as written in a test, without the indentation and the first line break."""
    return dedent(text).strip("\n")


def ids(config: Config) -> list[str]:
    """The targets with their precisions."""
    return [target.id for target in config.targets]


def test_defaults() -> None:
    """Three keys are enough: the whole chain, int8, and the built-in rules."""
    config = read(SMALL)

    assert [type(stage) for stage in config.stages] == list(STAGES)
    assert config.task.kind == "classification"
    assert ids(config) == ["onnxruntime-int8"]
    assert config.rules == DEFAULT_RULES
    assert config.text == SMALL


def test_gate_null() -> None:
    """`gate: null` asks for no rule at all, which is not the same as leaving it out."""
    assert read(SMALL + "gate: null\n").rules == ()


def test_gate() -> None:
    """Rules of the user's replace the built-in ones."""
    rules = read(SMALL + "gate: [{metric: agreement, min: 0.9, target: onnxruntime}]\n").rules

    assert rules == (Rule(metric="agreement", min=0.9, target="onnxruntime"),)


@pytest.mark.parametrize("off", ["quantize: null", "quantize: {mode: none}"])
def test_without_quantization(off: str) -> None:
    """Both spellings leave the stage out, and the targets in fp32."""
    config = read(f"{SMALL}{off}\n")

    assert "quantize" not in [stage.name for stage in config.stages]
    assert ids(config) == ["onnxruntime-fp32"]


def test_precision() -> None:
    """A target has the precision of the chain, unless it names another one; both may be wanted."""
    text = SMALL.replace("[onnxruntime]", "[onnxruntime, {name: onnxruntime, precision: fp32}]")

    assert ids(read(text)) == ["onnxruntime-int8", "onnxruntime-fp32"]


def test_steps() -> None:
    """The config's own chain, once per target where a stage works for one."""
    steps = [step.id for step in read(SMALL).steps()]

    assert steps == [
        "data", "teacher", "student", "distill", "quantize", "export",
        "compile[onnxruntime-int8]", "benchmark[onnxruntime-int8]",
    ]  # fmt: skip


def test_null_that_another_stage_needs() -> None:
    """Skipping the student but not the distillation is refused, with what to type."""
    with pytest.raises(ConfigError) as caught:
        read(SMALL + "student: null\n").steps()

    assert caught.value.what == "stage 'distill' needs stage 'student', which is null"
    assert caught.value.fix == "remove `student: null`, or set `distill: null` too"
    assert [s.id for s in read(SMALL + "student: null\ndistill: null\n").steps()][:3] == [
        "data",
        "teacher",
        "quantize",
    ]


def test_stage_that_cannot_be_null() -> None:
    """A stage with a setting that must be given cannot be skipped."""
    assert "data: null is not a mapping" in refused(SMALL.replace("{source: digits}", "null"))


def test_unknown_stage() -> None:
    """A key that is no stage is refused with the nearest one."""
    message = refused(SMALL + "destill: null\n")

    assert "destill: unknown key" in message
    assert "did you mean `distill`?" in message


def test_targets_that_cannot_be() -> None:
    """A target listed twice, and int8 without quantization, are told together at their places."""
    expected = golden("""
        error: targets[1]: onnxruntime-fp32 is listed twice
          --> kdpipe.yaml:6:5
           |
          6|   - {name: onnxruntime, threads: 2}
           |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
           = note: it is targets[0] too
           = help: remove one of the two

        error: targets[2].precision: this chain does not make int8
          --> kdpipe.yaml:7:33
           |
          7|   - {name: openvino, precision: int8}
           |                                 ^^^^
           = help: set quantize.mode to ptq or qat, or precision: fp32 for this target

        2 errors in kdpipe.yaml; nothing was run.
    """)

    text = """\
        data: {source: digits}
        teacher: {model: resnet8}
        quantize: null
        targets:
          - onnxruntime
          - {name: onnxruntime, threads: 2}
          - {name: openvino, precision: int8}
    """
    assert refused(dedent(text)) == expected


def test_target_given_twice_by_set() -> None:
    """What --set made wrong is shown as it was typed."""
    message = refused(SMALL, "targets=[openvino, openvino]")

    assert "targets[1]: openvino-int8 is listed twice\n  --> --set targets=[openvino" in message
    assert message.endswith("1 error in --set; nothing was run.")


def test_rule_about_a_target_that_is_not_there() -> None:
    """A rule that names no configured target is refused with the nearest and all of them."""
    expected = golden("""
        error: gate[1].target: 'onnxruntime-fp32' is none of the targets
          --> kdpipe.yaml:6:39
           |
          6|   - {metric: speedup, min: 1, target: onnxruntime-fp32}
           |                                       ^^^^^^^^^^^^^^^^
           = help: did you mean `onnxruntime`? (onnxruntime-int8, onnxruntime)

        1 error in kdpipe.yaml; nothing was run.
    """)

    text = SMALL + golden("""
        gate:
          - {metric: speedup, min: 1, target: onnxruntime}
          - {metric: speedup, min: 1, target: onnxruntime-fp32}
    """)
    assert refused(text) == expected


def test_no_targets() -> None:
    """At least one target is needed."""
    assert "targets: name at least one target" in refused(SMALL.replace("[onnxruntime]", "[]"))


def test_version() -> None:
    """A file of another format is refused."""
    assert "version: unknown value 2" in refused(SMALL + "version: 2\n")


def test_missing_file() -> None:
    """A path that leads nowhere is a usage error."""
    with pytest.raises(UsageError, match=r"there is no config file none\.yaml"):
        Config.read(Path("none.yaml"))


@pytest.mark.parametrize(
    ("settings", "what", "found"),
    [
        ("export: {half: true}\nquantize: null", "export.half does nothing", "no `quantize`"),
        (
            "export: {half: true}\nquantize: {mode: ptq, engine: onnxruntime}",
            "export.half does nothing",
            "quantize.engine: onnxruntime",
        ),
        (
            "distill: {control: null}\nquantize: {control: true}",
            "no control to quantize",
            "distill.control: null",
        ),
        ("distill: null\nquantize: {control: true}", "no control to quantize", "no `distill`"),
    ],
)
def test_stages_that_contradict_each_other(settings: str, what: str, found: str) -> None:
    """They are refused before anything runs, and not when a training has led there."""
    config = read(f"{SMALL}{settings}\n")

    with pytest.raises(UsageError, match=what) as caught:
        config.check()

    assert found in caught.value.found


def test_max_drop_without_labels() -> None:
    """Likewise; samples that are drawn from train have labels."""
    text = SMALL.replace("digits}", "digits, calibration: {source: digits}}")
    settings = "quantize: {mode: ptq, max_drop: 0.01}\n"

    with pytest.raises(UsageError, match="needs calibration samples with labels"):
        read(text + settings).check()
    read(SMALL + settings).check()


def test_set_wins() -> None:
    """--set overrides the file and is checked like it."""
    assert ids(read(SMALL, "quantize=null")) == ["onnxruntime-fp32"]
    assert "distill.epochs: '3' is text" in refused(SMALL, 'distill.epochs="3"')


def test_set_is_kept() -> None:
    """What the config was read with stands beside the file's own text, in order."""
    given = ("distill.epochs=3", "distill.epochs=4")
    config = read(SMALL, *given)

    assert (config.text, config.assignments) == (SMALL, given)


def undescribed(node: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:
    """Properties of a JSON schema that say nothing of themselves, tags and references aside."""
    for name, value in node.get("properties", {}).items():
        inner = root["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
        if not (value.get("description") or inner.get("description") or "const" in value):
            yield f"{at}.{name}"


def test_the_published_schema_is_that_of_the_models() -> None:
    """`kdpipe schema` prints a file, which is what the settings say today."""
    assert published() == generated(), "make generated"


def test_schema() -> None:
    """The schema for editors is JSON and describes every key, and every setting below."""
    found = json.loads(json.dumps(schema().model_json_schema()))

    keys = ["version", "task", *(stage.name for stage in STAGES), "targets", "gate"]
    assert list(found["properties"]) == keys
    assert found["additionalProperties"] is False
    assert set(found["required"]) == {"data", "teacher", "targets"}
    nodes = {"kdpipe": found, **found["$defs"]}
    assert [gap for name, node in nodes.items() for gap in undescribed(node, found, name)] == []
