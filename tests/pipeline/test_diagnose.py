"""Every problem of a config in one error, each under the guilty words: whole texts compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FilePath, field_validator

from kdpipe.pipeline.diagnose import validate
from kdpipe.pipeline.document import Document
from kdpipe.stages.paths import UserPath
from kdpipe.targets.errors import ConfigError


class Strict(BaseModel):
    """No unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Onnxruntime(Strict):
    """A target without settings of its own."""

    name: Literal["onnxruntime"] = "onnxruntime"
    precision: Literal["fp32", "int8"] | None = None
    threads: int = Field(1, gt=0, description="threads of the runtime")


class Openvino(Strict):
    """A target that needs a setting."""

    name: Literal["openvino"] = "openvino"
    device: str
    precision: Literal["fp32", "int8"] | None = None


def expand(value: Any) -> Any:
    """A bare word is the name."""
    return {"name": value} if isinstance(value, str) else value


Target = Annotated[Onnxruntime | Openvino, Field(discriminator="name"), BeforeValidator(expand)]


class Rule(Strict):
    """Keys with hyphens."""

    metric: str = Field(min_length=3)
    max_degradation: float | None = Field(None, alias="max-degradation", ge=0, le=1)


class Crop(Strict):
    """A mapping where a number would do."""

    height: int
    width: int


class Distill(Strict):
    """Nested settings and plain unions."""

    epochs: int = Field(20, ge=1)
    rate: float = 0.1
    threads: int | Literal["auto"] = "auto"
    crop: int | Crop | list[Crop] = 32
    schedule: Literal["cosine", "step"] = "cosine"
    enabled: bool = True
    weights: dict[str, float] = {}
    switch: Literal["on", "off"] = "on"
    levels: Literal[1, 2, 4] = 1
    file: Annotated[FilePath, UserPath] | None = None

    @field_validator("epochs")
    @classmethod
    def even(cls, value: int) -> int:
        """A validator that explains itself in two lines, and one that asserts."""
        assert value < 1000, "nobody has that much time"
        if value % 2:
            raise ValueError(f"{value} is odd\nhelp: take {value + 1}")
        return value


def nested(value: Any) -> Any:
    """A plug-in's settings, validated where the outer model cannot see their type."""
    return Crop.model_validate(value)


class Config(Strict):
    """A whole file."""

    task: str = "classification"
    distill: Distill | None = None
    targets: tuple[Target, ...] = Field((), max_length=3)
    gate: list[Rule] | None = None
    plugin: Annotated[Any, BeforeValidator(nested)] = None
    labels: dict[str, int] = {}


class Needy(Strict):
    """A file that must say something."""

    data: Crop


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named as a user in that folder would type them."""
    monkeypatch.chdir(tmp_path)


def read(text: str, *assignments: str, model: type[BaseModel] = Config) -> BaseModel:
    """The settings in a file `kdpipe.yaml` of these contents."""
    path = Path("kdpipe.yaml")
    path.write_text(dedent(text), encoding="utf-8")
    return validate(model, Document.read(path).override(assignments))


def refused(text: str, *assignments: str, model: type[BaseModel] = Config) -> str:
    """What the user reads when these contents are refused."""
    with pytest.raises(ConfigError) as caught:
        read(text, *assignments, model=model)
    return str(caught.value)


def summary(message: str) -> list[str]:
    """Of every problem, its first line and its place, in one line."""
    blocks = message.split("\n\n")[:-1]
    lines = [block.splitlines()[:2] for block in blocks]
    return [f"{what[7:]} @{where[6:].removeprefix('kdpipe.yaml:')}" for what, where in lines]


def golden(text: str) -> str:
    """A whole text as written in a test, without the indentation and the first line break."""
    return dedent(text).strip("\n")


def test_valid() -> None:
    """What is right comes back as the model, bare words and hyphens included."""
    config = read("""\
        targets: [onnxruntime, {name: openvino, device: GPU}]
        gate: [{metric: abc, max-degradation: 1e-3}]
    """)

    assert config == Config(
        targets=(Onnxruntime(), Openvino(device="GPU")),
        gate=[Rule.model_validate({"metric": "abc", "max-degradation": 0.001})],
    )


def test_paths_are_relative_to_the_file_or_the_shell(tmp_path: Path) -> None:
    """A path in the file starts at the file's folder, one typed after --set at the shell's.

    Both become absolute, also where the config file was named by a relative path.
    """

    class Paths(Strict):
        here: UserPath
        there: UserPath

    Path("sub").mkdir()
    Path("sub/kdpipe.yaml").write_text("here: a\nthere: b\n")

    config = validate(Paths, Document.read(Path("sub/kdpipe.yaml")).override(["there=b"]))

    assert config.here == tmp_path / "sub" / "a"
    assert config.there == tmp_path / "b"


def test_the_layout() -> None:
    """The typical three, sorted by line, with carets under value, key and value."""
    expected = golden("""
        error: targets[0].name: unknown value 'openvnio'
          --> kdpipe.yaml:4:11
           |
          4|   - name: openvnio
           |           ^^^^^^^^
           = help: did you mean `openvino`? (onnxruntime, openvino)

        error: targets[1].precission: unknown key
          --> kdpipe.yaml:6:5
           |
          6|     precission: int8
           |     ^^^^^^^^^^
           = help: did you mean `precision`?

        error: targets[1].threads: 'two' is not a whole number
          --> kdpipe.yaml:7:14
           |
          7|     threads: two
           |              ^^^

        3 errors in kdpipe.yaml; nothing was run.
    """)

    text = """\
        # the smallest chain
        task: classification
        targets:
          - name: openvnio
          - name: onnxruntime
            precission: int8
            threads: two
    """
    assert expected == refused(text)


def test_missing_key() -> None:
    """A missing key is shown under its parent key, or under the list item that lacks it."""
    expected = golden("""
        error: distill.crop.width: missing
          --> kdpipe.yaml:2:3
           |
          2|   crop: {height: 3}
           |   ^^^^
           = help: add `width: ...` under `distill.crop`

        error: targets[0].device: missing
          --> kdpipe.yaml:4:5
           |
          4|   - name: openvino
           |     ^^^^^^^^^^^^^^
           = help: add `device: ...` under `targets[0]`

        error: targets[1].device: missing
          --> kdpipe.yaml:6:5
           |
          6|   - openvino
           |     ^^^^^^^^
           = help: add `device: ...` under `targets[1]`

        3 errors in kdpipe.yaml; nothing was run.
    """)

    text = """\
        distill:
          crop: {height: 3}
        targets:
          - name: openvino
            precision: int8
          - openvino
    """
    assert expected == refused(text)


def test_missing_at_the_top() -> None:
    """Where the file itself lacks a key, no line is guilty."""
    expected = golden("""
        error: data: missing
          --> kdpipe.yaml:1:1
           = help: add `data: ...`

        1 error in kdpipe.yaml; nothing was run.
    """)

    assert expected == refused("{}", model=Needy)


def test_override_place() -> None:
    """A wrong --set is shown as it was typed, after the problems of the file."""
    expected = golden("""
        error: task: 3 is not text
          --> kdpipe.yaml:1:7
           |
          1| task: 3
           |       ^
           = help: put it in quotes: '3'

        error: distill.epochs: 'abc' is not a whole number
          --> --set distill.epochs=abc

        2 errors in kdpipe.yaml and --set; nothing was run.
    """)

    assert expected == refused("task: 3\n", "distill.epochs=abc")


def test_override_only() -> None:
    """Where only --set is wrong, the file is not blamed."""
    expected = golden("""
        error: distill.epoch: unknown key
          --> --set distill.epoch=3
           = help: did you mean `epochs`?

        1 error in --set; nothing was run.
    """)

    assert expected == refused("task: x\n", "distill.epoch=3")


def test_alias_note() -> None:
    """What an alias repeats is shown where it is written, with the line of its use."""
    expected = golden("""
        error: distill.rate: 'fast' is not a number
          --> kdpipe.yaml:1:11
           |
          1| task: &t  fast
           |           ^^^^
           = note: used through the alias in line 2

        1 error in kdpipe.yaml; nothing was run.
    """)

    assert expected == refused("task: &t  fast\ndistill: {rate: *t}\n")


def test_merged_mapping() -> None:
    """A wrong value that came by a merge is shown at the anchor, one beside it at its own line."""
    text = """\
        gate:
          - &rule {metric: abc, max-degradation: 2}
          - {<<: *rule, metric: 5}
    """

    assert summary(refused(text)) == [
        "gate[0].max-degradation: 2 is too large @2:42",
        "gate[1].max-degradation: 2 is too large @2:42",
        "gate[1].metric: 5 is not text @3:25",
    ]


@pytest.mark.parametrize(
    ("text", "what", "note"),
    [
        ("epochs: x", "epochs: 'x' is not a whole number @1:19", ""),
        ("epochs: 2.5", "epochs: 2.5 is not a whole number @1:19", ""),
        ("epochs: []", "epochs: a list is not a whole number @1:19", ""),
        ("epochs: 0", "epochs: 0 is too small @1:19", "help: it must be at least 1"),
        ("epochs: 3", "epochs: 3 is odd @1:19", "help: take 4"),
        ("epochs: 2000", "epochs: nobody has that much time @1:19", ""),
        ("epochs: ", "epochs: null is not a whole number @1:11", "help: write a value after"),
        ("rate: '1,5'", "rate: '1,5' is not a number @1:17", "help: write it with a dot: 1.5"),
        ("rate: 15%", "rate: '15%' is not a number @1:17", "help: write a fraction: 0.15"),
        ("enabled: maybe", "enabled: 'maybe' is not true or false @1:20", ""),
        (
            "schedule: cosin",
            "schedule: unknown value 'cosin' @1:21",
            "did you mean `cosine`? (cosine, step)",
        ),
        ("schedule: zzz", "schedule: unknown value 'zzz' @1:21", "help: choose from: cosine, step"),
        (
            "switch: off",
            "switch: unknown value false @1:19",
            "put it in quotes: 'off' (YAML reads it as false)",
        ),
        ("levels: '2'", "levels: unknown value '2' @1:19", "help: write it without quotes: 2"),
        ("weights: 3", "weights: 3 is not a mapping @1:20", "help: write `key: value` lines"),
        (
            "weights: {no: 1}",
            "weights: the key `no` is false to YAML, not text @1:21",
            "quotes: 'no'",
        ),
        ("weights: {a: b}", "weights.a: 'b' is not a number @1:24", ""),
        ("file: none.txt", "file: 'none.txt' is not a file that exists @1:17", ""),
        ("zzz: 1", "zzz: unknown key @1:11", "help: allowed here: epochs, rate, threads"),
    ],
)
def test_wordings(text: str, what: str, note: str) -> None:
    """Each kind of mistake has its own words, place and mend."""
    message = refused(f"distill: {{{text}}}")

    assert summary(message) == [f"distill.{what}"]
    assert note in message


@pytest.mark.parametrize(
    ("text", "what", "note"),
    [
        ("distill: 3", "distill: 3 is not a mapping @1:10", "keys: epochs, rate"),
        (
            "targets: onnxruntime",
            "targets: 'onnxruntime' is not a list @1:10",
            "write a list: [onnxruntime]",
        ),
        ("targets: [4]", "targets[0]: 4 is not a mapping @1:11", "one of: onnxruntime, openvino"),
        (
            "targets: [openvnio]",
            "targets[0]: unknown value 'openvnio' @1:11",
            "did you mean `openvino`?",
        ),
        (
            "targets: [{nam: openvino}]",
            "targets[0]: `name` is missing @1:11",
            "`name` where it says `nam`",
        ),
        (
            "targets: [{x: 1}]",
            "targets[0]: `name` is missing @1:11",
            "one of: onnxruntime, openvino",
        ),
        (
            "targets: [onnxruntime, onnxruntime, onnxruntime, onnxruntime]",
            "targets: has 4 items @1:10",
            "at most 3",
        ),
        (
            "gate: [{metric: ab}]",
            "gate[0].metric: 'ab' is too short @1:17",
            "at least 3 characters",
        ),
        (
            "gate: [{metric: abc, max_degradation: 0}]",
            "gate[0].max_degradation: unknown key @1:22",
            "did you mean `max-degradation`?",
        ),
        ("on: 1", "the key `on` is true to YAML, not text @1:1", "put the key in quotes: 'on'"),
        (
            "task: off",
            "task: false is not text @1:7",
            "put it in quotes: 'off' (YAML reads it as false)",
        ),
        ("task: 2024-01-02", "task: 2024-01-02 is not text @1:7", "put it in quotes: '2024-01-02'"),
        ("plugin: {height: 1, width: x}", "plugin.width: 'x' is not a whole number @1:28", ""),
        ("plugin: {height: 1}", "plugin.width: missing @1:1", "add `width: ...` under `plugin`"),
    ],
)
def test_wordings_at_the_top(text: str, what: str, note: str) -> None:
    """Lists, tagged unions, bare words, hyphens, and settings of a type that nobody sees."""
    message = refused(text)

    assert summary(message) == [what]
    assert note in message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("threads: many", ["threads: 'many' is neither a whole number nor `auto` @1:20"]),
        ("crop: x", ["crop: 'x' is neither a whole number nor a mapping nor a list @1:17"]),
        ("crop: {height: x, width: 1}", ["crop.height: 'x' is not a whole number @1:26"]),
        ("crop: [{height: 1, width: y}]", ["crop[0].width: 'y' is not a whole number @1:37"]),
        (
            "crop: {height: x, wide: 1}",
            ["crop.height: 'x' is not a whole number @1:26", "crop.wide: unknown key @1:29"],
        ),
    ],
)
def test_plain_union(text: str, what: Sequence[str]) -> None:
    """Of a plain union, the member that fits best speaks; where none fits, one line for all."""
    assert summary(refused(f"distill: {{{text}}}")) == [f"distill.{line}" for line in what]


def test_union_of_models_prefers_the_tag() -> None:
    """Between models in a plain union, the one whose literal tag the user wrote is meant."""

    class Plain(Strict):
        target: Openvino | Onnxruntime

    message = refused("target: {name: onnxruntime, device: x}", model=Plain)

    assert summary(message) == ["target.device: unknown key @1:29"]


def test_typo_is_one_problem() -> None:
    """A required key that is there with a typo is not missing as well."""
    message = refused("gate: [{metrik: accuracy}]")

    assert summary(message) == ["gate[0].metrik: unknown key @1:9"]
    assert "did you mean `metric`?" in message


def test_bare_word_that_misses_a_key() -> None:
    """A bare word has no keys of its own: problems below it are shown under the word."""
    message = refused("targets: [openvino, onnxruntime]")

    assert summary(message) == ["targets[0].device: missing @1:11"]


def test_tag_that_is_also_a_key() -> None:
    """A tag in pydantic's location is not taken for a key of the same name."""

    class At(Strict):
        kind: Literal["at"]
        at: int = 0
        weight: float = 1

    class Other(Strict):
        kind: Literal["other"]

    class Methods(Strict):
        methods: list[Annotated[At | Other, Field(discriminator="kind")]]

    message = refused("methods: [{kind: at, at: 3, weight: x}]", model=Methods)

    assert summary(message) == ["methods[0].weight: 'x' is not a number @1:37"]


def test_populated_by_name() -> None:
    """A field with an alias that is given by its name is found under the name."""

    class Named(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        high: int = Field(alias="upper-limit")

    assert summary(refused("high: x\n", model=Named)) == ["high: 'x' is not a whole number @1:7"]


def test_description_helps_with_missing_keys() -> None:
    """What the model says of a field is told to who left it out."""

    class Described(Strict):
        classes: int = Field(description="how many classes there are")

    message = refused("{}", model=Described)

    assert "   = note: classes: how many classes there are" in message


def test_long_values_and_control_characters() -> None:
    """Values are cut at 60 characters, and nothing in them reaches the terminal as a command."""
    message = refused(f'distill: {{epochs: {"x" * 90}, "a\\eb": 1, rate: "\\e[1m"}}')

    assert f"distill.epochs: '{'x' * 57}...' is not a whole number" in message
    assert "distill.a?b: unknown key" in message
    assert "'\\x1b[1m' is not a number" in message
    assert "\x1b" not in message


def test_kinds_that_nobody_foresaw() -> None:
    """Other errors of pydantic are told in a sentence without its phrases."""

    class Odd(Strict):
        when: Annotated[str, Field(pattern="^[0-9]+$")] = "0"
        size: complex = 0j

    message = refused("when: abc\nsize: [1]\n", model=Odd)

    assert summary(message) == [
        "when: 'abc' is not accepted @1:7",
        "size: a list is not accepted @2:7",
    ]
    assert "help: it must match ^[0-9]+$" in message


def test_no_word_of_the_library() -> None:
    """No phrase of pydantic is shown to the user."""
    message = refused("""\
        task: []
        distill: {epochs: x, rate: y, threads: z, crop: w, schedule: v, enabled: u, weights: t}
        targets: [{name: s}, {x: 1}, 5, openvino]
        gate: {}
        labels: {a: b}
        extra: 1
    """)

    phrases = ("Input should", "Extra inputs", "Field required", "valid", "type=", "tag", "parse")
    assert [phrase for phrase in phrases if phrase in message] == []
    assert message.endswith("15 errors in kdpipe.yaml; nothing was run.")


@pytest.mark.parametrize(
    ("text", "what", "help_"),
    [
        ("threads: yes", "threads: yes is true/false, not a number @1:20", ""),
        ("rate: true", "rate: true is true/false, not a number @1:17", ""),
        ("epochs: no", "epochs: false is not a number @1:19", ""),
        ("epochs: '0'", "epochs: '0' is not a number @1:19", ""),
        ("epochs: '4'", "epochs: '4' is text, not a number @1:19", "without quotes: 4"),
        ("rate: off", "rate: off is true/false, not a number @1:17", ""),
        ("rate: '1e-3'", "rate: '1e-3' is text, not a number @1:17", "without quotes: 1e-3"),
        ("rate: 'nan'", "rate: 'nan' is text, not a number @1:17", ""),
        ("enabled: 'no'", "enabled: 'no' is text, not true or false @1:20", "without quotes: no"),
        ("enabled: 1", "enabled: 1 is a number, not true or false @1:20", ""),
        ("threads: '2'", "threads: '2' is text, not a number @1:20", "without quotes: 2"),
        ("crop: {height: '3', width: 1}", "crop.height: '3' is text, not a number @1:26", ""),
        (
            "crop: [{height: 1, width: no}]",
            "crop[0].width: no is true/false, not a number @1:37",
            "",
        ),
        ("weights: {a: '1'}", "weights.a: '1' is text, not a number @1:24", ""),
    ],
)
def test_nothing_is_converted(text: str, what: str, help_: str) -> None:
    """Text or yes/no where a number belongs is refused, though the library would convert it."""
    message = refused(f"distill: {{{text}}}")

    assert summary(message) == [f"distill.{what}"]
    assert help_ in message


def test_conversions_are_told_all_at_once() -> None:
    """Every conversion is one problem, under an alias, below a hyphened key and in --set too."""
    expected = golden("""
        error: distill.epochs: '4' is text, not a number
          --> kdpipe.yaml:1:11
           |
          1| task: &t  '4'
           |           ^^^
           = help: write it without quotes: 4
           = note: used through the alias in line 2

        error: gate[0].max-degradation: on is true/false, not a number
          --> kdpipe.yaml:3:39
           |
          3| gate: [{metric: abc, max-degradation: on}]
           |                                       ^^

        error: targets[0].threads: '2' is text, not a number
          --> --set targets=[{name: onnxruntime, threads: "2"}]
           = help: write it without quotes: 2

        3 errors in kdpipe.yaml and --set; nothing was run.
    """)

    text = """\
        task: &t  '4'
        distill: {epochs: *t}
        gate: [{metric: abc, max-degradation: on}]
    """
    assert expected == refused(text, 'targets=[{name: onnxruntime, threads: "2"}]')


def test_values_of_the_right_kind_pass() -> None:
    """Whole numbers are numbers, and text and true/false stay what they are where they belong."""
    config = read("""\
        task: "3"
        distill: {epochs: 4.0, rate: 1, threads: auto, enabled: no, weights: {a: 2}}
        labels: {a: 1}
    """)

    assert config == Config(
        task="3",
        distill=Distill(epochs=4, rate=1.0, enabled=False, weights={"a": 2.0}),
        labels={"a": 1},
    )
