"""Reading a config file, its places, its refusals, and `--set`; `test_diagnose.py` has models."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from kdpipe.pipeline.document import Document
from kdpipe.pipeline.place import Place, Span
from kdpipe.stages.paths import Typed
from kdpipe.targets.errors import ConfigError, UsageError


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named as a user in that folder would type them."""
    monkeypatch.chdir(tmp_path)


def read(text: str | bytes) -> Document:
    """The document in a file `kdpipe.yaml` of these contents."""
    path = Path("kdpipe.yaml")
    path.write_bytes(text if isinstance(text, bytes) else dedent(text).encode())
    return Document.read(path)


def refused(text: str | bytes) -> str:
    """What the user reads when these contents are refused."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.exit_code == 2
    return str(caught.value)


def wrong_set(document: Document, assignment: str) -> list[str]:
    """The three parts of the error for one `--set`."""
    with pytest.raises(UsageError) as caught:
        document.override([assignment])
    return [caught.value.what, caught.value.found, caught.value.fix]


def golden(text: str) -> str:
    """A whole text as written in a test, without the indentation and the first line break."""
    return dedent(text).strip("\n")


def test_data_and_places() -> None:
    """Every address knows where its key and its value stand, counted from 1 in characters."""
    document = read("""\
        task: classification
        targets:
          - {name: onnxrüntime, threads: 2}
    """)

    assert document.data == {
        "task": "classification",
        "targets": [{"name": "onnxrüntime", "threads": 2}],
    }
    assert document.place(("task",)) == Place(Span(1, 7, 14), Span(1, 1, 4))
    assert document.place(("targets", 0, "threads")) == Place(Span(3, 34, 1), Span(3, 25, 7))


def test_place_of_what_is_not_written() -> None:
    """An address that is not in the file has the place of its nearest parent."""
    document = read("source: digits\n")

    assert document.place(("source", "image", "size")) == document.place(("source",))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-2.5e3", -2500.0),
        (".5e+1", 5.0),
        ("1.5e-3", 0.0015),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1e-3x", "1e-3x"),
        ("on", True),
        ("no", False),
        ("'no'", "no"),
        ("0x10", 16),
        ("=", "="),
        ("<<", "<<"),
        ("~", None),
    ],
)
def test_scalars(text: str, value: object) -> None:
    """Scalars are PyYAML's, and `1e-3` is a number."""
    got = read(f"value: {text}\n").data["value"]

    assert (type(got), got) == (type(value), value)


def test_byte_order_mark_and_windows_line_ends() -> None:
    """A file from a Windows editor has the same data and places."""
    document = read(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")

    assert document.data == {"a": 1, "b": 2}
    assert document.place(("b",)).key == Span(2, 1, 1)


def test_anchor_alias_merge() -> None:
    """Own keys win over merged ones, the first merge wins, and places are those of the writing."""
    document = read("""\
        base: &base {epochs: 3, rate: 0.1}
        more: &more {rate: 0.2, seed: 7}
        use:
          <<: [*base, *more]
          epochs: 5
        again: *base
    """)

    assert document.data["use"] == {"epochs": 5, "rate": 0.1, "seed": 7}
    assert document.data["again"] == {"epochs": 3, "rate": 0.1}
    assert document.place(("use", "epochs")).value == Span(5, 11, 1)
    assert document.place(("use", "rate")) == Place(Span(1, 31, 3), Span(1, 25, 4), Span(4, 8, 5))
    assert document.place(("again",)).alias == Span(6, 8, 5)
    assert document.place(("base",)).alias is None


def test_anchor_is_not_part_of_the_value() -> None:
    """The place of an anchored value starts behind the anchor."""
    assert read("a: &x  12\n").place(("a",)).value == Span(1, 8, 2)


def test_aliases_do_not_share_data() -> None:
    """Setting a value reached by an alias leaves the anchor as it is."""
    document = read("a: &x {n: 1}\nb: *x\n").override(["b.n=2"])

    assert document.data == {"a": {"n": 1}, "b": {"n": 2}}


def test_missing_file() -> None:
    """A missing file is a usage error that names the nearest file there is."""
    Path("kdpipe.yaml").write_text("a: 1\n")

    with pytest.raises(UsageError) as caught:
        Document.read(Path("kdpip.yaml"))

    assert caught.value.what == "there is no config file kdpip.yaml"
    assert caught.value.found == f"kdpipe.yaml in {Path.cwd()}"
    assert caught.value.fix == "did you mean kdpipe.yaml?"


def test_missing_folder() -> None:
    """A path through a folder that does not exist says so."""
    with pytest.raises(UsageError) as caught:
        Document.read(Path("nowhere/kdpipe.yaml"))

    assert caught.value.found == f"no folder {Path.cwd() / 'nowhere'}"


def test_folder() -> None:
    """A folder is refused, with the name of a config in it."""
    Path("here").mkdir()
    Path("here/a.yml").write_text("a: 1\n")

    with pytest.raises(UsageError) as caught:
        Document.read(Path("here"))

    assert caught.value.what == "here is a folder, not a config file"
    assert caught.value.fix == "name a file in it, e.g. here/a.yml"


def test_file_in_the_place_of_a_folder() -> None:
    """What the system refuses to open is a usage error with its reason, not a traceback."""
    Path("here").write_text("a: 1\n")

    with pytest.raises(UsageError) as caught:
        Document.read(Path("here/kdpipe.yaml"))

    assert caught.value.what == "the config file here/kdpipe.yaml cannot be read"
    assert caught.value.found == "Not a directory"


def test_duplicate_keys() -> None:
    """Every repeated key is reported, with the line of the first one."""
    expected = golden("""
        error: epochs: this key is given twice
          --> kdpipe.yaml:3:1
           |
          3| epochs: 5
           | ^^^^^^
           = note: it is first given in line 1
           = help: keep one of the two

        error: distill.rate: this key is given twice
          --> kdpipe.yaml:4:21
           |
          4| distill: {rate: 1,  rate: 2}
           |                     ^^^^
           = note: it is first given in line 4
           = help: keep one of the two

        2 errors in kdpipe.yaml; nothing was run.
    """)

    assert expected == refused("epochs: 3\nseed: 1\nepochs: 5\ndistill: {rate: 1,  rate: 2}\n")


def test_tab() -> None:
    """A tab in the indentation is named as such."""
    expected = golden("""
        error: this line is indented with a tab
          --> kdpipe.yaml:2:1
           |
          2|  epochs: 3
           | ^
           = help: YAML indents with spaces; put spaces in place of the tab

        1 error in kdpipe.yaml; nothing was run.
    """)

    assert expected == refused("distill:\n\tepochs: 3\n")


def test_indentation() -> None:
    """A line between two indentations is compared with the line above it, not with comments."""
    expected = golden("""
        error: this line does not fit the lines before it
          --> kdpipe.yaml:5:4
           |
          5|    rate: 1
           |    ^
           = note: this line is indented by 3 spaces, the line above it by 4
           = help: lines of one mapping or list start in the same column

        1 error in kdpipe.yaml; nothing was run.
    """)

    assert expected == refused("distill:\n    epochs: 3\n # note\n\n   rate: 1\n")


@pytest.mark.parametrize(
    ("text", "what", "place", "note"),
    [
        ("a:\n  b: 1\n   c: 2\n", "a `:` is not expected here", "3:5", "indented by 3 spaces"),
        ("a: b: c\n", "a `:` is not expected here", "1:5", "put text that contains `: ` in quotes"),
        ("a:1\nb: 2\n", "a `:` is not expected here", "2:2", "a space after the colon of line 1"),
        ("a\nb: 2\n", "a `:` is not expected here", "2:2", "line 1 needs `: ` after its key"),
        ("a: 1\nbc\nd: 2\n", "this line is not `key: value`", "2:1", "put `: ` after the key"),
        ("a: {x: 1\nb: 2\n", "the `{` opened here is not closed", "1:4", "close it with `}`"),
        ("a: [1, 2\nb: 2\n", "the `[` opened here is not closed", "1:4", "close it with `]`"),
        ("a: 'x\nb: 2\n", "the quote opened here is not closed", "1:4", "the same quote"),
        ("a: *xy\n", "the alias `*xy` has no anchor", "1:4", "`&xy`, before this line"),
        ("a: &x 1\nb: &x 2\n", "the anchor `&x` is given twice", "2:4", "in line 1"),
        ("a: @x\n", "a plain text cannot start with this character", "1:4", "in quotes"),
        ("a: 1\n---\nb: 2\n", "a second document starts here", "2:1", "one config per file"),
        ("a: - 1\n", "a list item is not expected here", "1:4", "on a line of its own"),
        ("- a\nb: 1\n", "this line does not fit the lines before it", "2:1", "cannot follow"),
        ('a: "\\q"\n', "this backslash means nothing in double quotes", "1:6", "`\\\\`"),
        ("a: \x01\n", "the character U+0001 is not allowed in YAML", "1:4", "remove it"),
        ("a: }\n", "a value is expected here", "1:4", "in quotes"),
        ("a: {{ x }}\n", "a mapping or a list cannot be a key", "1:5", "in quotes"),
        ("a: !!python/name:os.system x\n", "the tag `!!python/name:os.system` is not", "1:4", ""),
        ("a: !!set {x}\n", "the tag `!!set` is not supported", "1:4", "only plain YAML"),
        ("a: 2024-13-45\n", "'2024-13-45' is not a timestamp", "1:4", "if it is text"),
        ("a: {<<: 3}\n", "`<<` merges only mappings", "1:9", ""),
        ("", "the file is empty", "1:1", ""),
        ("# nothing\n", "the file is empty", "1:1", ""),
        ("- a\n- b\n", "the config is a list, not a mapping", "1:1", "write `key: value` lines"),
        ("abc\n", "the config is 'abc', not a mapping", "1:1", ""),
        (b"a: b\nc: \xff\n", "this is not UTF-8 text (byte 0xff)", "2:4", "save the file as UTF-8"),
        ("[" * 5000, "mappings and lists are nested too deeply", "1:1", ""),
    ],
)
def test_refusals(text: str | bytes, what: str, place: str, note: str) -> None:
    """What is not a YAML mapping is refused in plain words, at its place."""
    message = refused(text)

    assert message.startswith(f"error: {what}")
    assert f"\n  --> kdpipe.yaml:{place}\n" in message
    assert note in message
    assert message.endswith("\n\n1 error in kdpipe.yaml; nothing was run.")


def test_alias_in_itself() -> None:
    """A value inside itself is refused, in a list and in a merge."""
    assert "repeats a value inside itself\n  --> kdpipe.yaml:1:8" in refused("a: &a [*a]\n")
    assert "repeats a value inside itself\n  --> kdpipe.yaml:1:12" in refused("a: &a {<<: *a}\n")


def test_alias_bomb() -> None:
    """Aliases of aliases stop at 10,000 repeated values, as items and as merges."""
    lists = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    merges = ["b0: &b0 {k0: x}"]
    for i in range(1, 20):
        lists.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
        merges.append(f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 10)}]}}")

    assert "aliases repeat more than 10,000 values" in refused("\n".join(lists))
    assert "aliases repeat more than 10,000 values" in refused("\n".join(merges))


def test_many_aliases_are_fine() -> None:
    """A config that repeats a hundred values is not a bomb."""
    uses = "".join(f"k{i}: *x\n" for i in range(100))

    assert len(read(f"a: &x {{b: 1}}\n{uses}").data) == 101


def test_long_line_is_cut_around_the_caret() -> None:
    """Of a long line, 100 characters around the caret are shown."""
    message = refused(f"a: {'x' * 150} b: {'y' * 150}\n")

    ruler, line, carets = message.splitlines()[2:5]
    assert ruler == "   |"
    assert line.startswith("  1| ...x")
    assert line.endswith("y...")
    assert len(line) == len("  1| ") + 106
    assert line[carets.index("^")] == ":"


def test_caret_under_wide_letters() -> None:
    """Columns count characters; the caret stands where a terminal draws them, 2 cells for wide."""
    lines = refused("数据: {x: 1, x: 2}\n").splitlines()

    assert lines[1] == "  --> kdpipe.yaml:1:12"
    assert lines[4].index("^") == len("  1| ") + 2 + 11


@pytest.mark.parametrize(
    ("assignment", "data"),
    [
        ("a.b=2", {"a": {"b": 2, "l": ["x", {"y": 1}], "n": None}}),
        ("a.l[0]=z", {"a": {"b": 1, "l": ["z", {"y": 1}], "n": None}}),
        ("a.l.1.y=1e-3", {"a": {"b": 1, "l": ["x", {"y": 0.001}], "n": None}}),
        ("a.l=[]", {"a": {"b": 1, "l": [], "n": None}}),
        (
            "a.n.o.p={q: [w]}",
            {"a": {"b": 1, "l": ["x", {"y": 1}], "n": {"o": {"p": {"q": ["w"]}}}}},
        ),
        ("a=null", {"a": None}),
        ("a=x=y", {"a": "x=y"}),
        ("c.d=3", {"a": {"b": 1, "l": ["x", {"y": 1}], "n": None}, "c": {"d": 3}}),
    ],
)
def test_override(assignment: str, data: dict[str, object]) -> None:
    """--set reaches into mappings and lists, and makes mappings that are absent or null."""
    document = read("a: {b: 1, l: [x, {y: 1}], n: null}\n")
    before = repr(document.data)

    assert data == document.override([assignment]).data
    assert before == repr(document.data)


def test_overrides_apply_in_order() -> None:
    """A later --set sees what an earlier one made."""
    document = read("a: 1\n").override(["b={c: 1}", "b.d=2", "b.c=3"])

    assert document.data == {"a": 1, "b": {"c": 3, "d": 2}}


def test_override_text_remembers_the_shell(tmp_path: Path) -> None:
    """Text from --set is relative to the shell's folder; the file's own text is not touched."""
    data = read("a: x\nb: x\n").override(["a=y", "c={k: [z]}"]).data

    assert isinstance(data["a"], Typed)
    assert data["a"].base == tmp_path
    assert isinstance(data["c"]["k"][0], Typed)
    assert not isinstance(data["b"], Typed)


def test_override_places() -> None:
    """What --set gave is at that --set, also below and for the mappings it made; the rest stays."""
    document = read("a: {b: {c: 1}}\nd: 2\n").override(["a.b=5", "x.y=1"])

    assert document.place(("a", "b", "c")) == Place(assignment="a.b=5")
    assert document.place(("x",)) == Place(assignment="x.y=1")
    assert document.place(("a",)).key == Span(1, 1, 1)
    assert document.place(("d",)).value == Span(2, 4, 1)


def test_override_keeps_the_text() -> None:
    """The text stays what the file says."""
    assert read("a: 1\n").override(["a=2"]).text == "a: 1\n"


@pytest.mark.parametrize(
    ("assignment", "what", "found"),
    [
        ("a.l[2]=1", "there is no a.l[2]", "a.l has 2: [0] 'x', [1] a mapping"),
        ("a.e[0]=1", "there is no a.e[0]", "an empty list"),
        ("a.l.x=1", "a.l is a list, and 'x' is not an index", "2 items"),
        ("a.l.-1=1", "a.l is a list, and '-1' is not an index", "2 items"),
        ("a.b.c=1", "a.b has no key 'c'", "a.b is 1"),
        ("a.l[0].name=1", "a.l[0] has no key 'name'", "a.l[0] is 'x'"),
        ("a[0]=1", "a has no entry [0]", "a is a mapping"),
        ("a.b", "there is no value", ""),
        ("a.b=", "there is no value", ""),
        ("a..b=1", "'a..b' is not a path", ""),
        ("=1", "'' is not a path", ""),
        ("a.b=[1", "the value is not valid YAML", "the `[` opened here is not closed: [1"),
        (
            "a.b={c: 1, c: 2}",
            "the value is not valid YAML",
            "c: this key is given twice: {c: 1, c: 2}",
        ),
    ],
)
def test_override_refusals(assignment: str, what: str, found: str) -> None:
    """A --set that leads nowhere says what is there and what to type."""
    document = read("a: {b: 1, l: [x, {y: 1}], e: []}\n")

    got_what, got_found, fix = wrong_set(document, assignment)

    assert (got_what, got_found) == (f"--set {assignment}: {what}", found)
    assert fix
