"""How targets are found: kdpipe's own, those of other packages, and without importing a runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.targets import GROUP, TARGETS, discover, name_of, target_named, targets
from kdpipe.targets.errors import UsageError

MODULE = """
from typing import Literal
from kdpipe.targets.onnxruntime import OnnxRuntime
class Mine(OnnxRuntime):
    name: Literal["mine"] = "mine"
class Taken(OnnxRuntime):
    pass
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder on the path holding a package `third_party` with the module MODULE."""
    (tmp_path / "third_party_targets.py").write_text(MODULE)
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return str(info / "entry_points.txt")


def enter(install: str, value: str) -> None:
    Path(install).write_text(f"[{GROUP}]\nmine = {value}\n")


def test_builtin_names_are_distinct() -> None:
    """Each target of kdpipe's own has a name of its own and is found by it."""
    assert [target_named(name_of(target)) for target in TARGETS] == list(TARGETS)


def test_unknown_name_lists_the_known() -> None:
    """Asking for a target that does not exist tells which do."""
    with pytest.raises(UsageError, match="onnxruntime, openvino, tensorrt"):
        target_named("tvm")


def test_third_party_target_is_found(install: str) -> None:
    """A package's entry point adds its target after kdpipe's own."""
    enter(install, "third_party_targets:Mine")

    assert [name_of(target) for target in targets()][-2:] == ["tensorrt", "mine"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("third_party_nowhere:Mine", "ModuleNotFoundError"),
        ("third_party_targets:Nothing", "AttributeError"),
        ("third_party_targets:Literal", "not a subclass"),
        ("third_party_targets:Taken", "the name 'onnxruntime' is taken"),
    ],
)
def test_broken_entry_point_is_named(install: str, value: str, found: str) -> None:
    """An entry point that cannot be used is an error with its name, package and reason."""
    enter(install, value)

    with pytest.raises(UsageError, match=r"'mine' of 'third-party'") as caught:
        targets()

    assert found in caught.value.found


def test_broken_entry_point_hides_no_other_target(install: str) -> None:
    """What can be used is found by its name, and the error is at hand for whoever lists targets."""
    enter(install, "third_party_nowhere:Mine")

    kinds, errors = discover()

    assert kinds == TARGETS
    assert list(errors) == ["mine"]
    assert target_named("openvino") in TARGETS
    with pytest.raises(UsageError, match="is broken"):
        target_named("mine")


def test_listing_targets_imports_no_runtime() -> None:
    """`missing` of every target, and the fingerprint, leave torch and the runtimes unimported."""
    code = (
        "import sys; from kdpipe.targets import targets;"
        "from kdpipe.targets.fingerprint import fingerprint; fingerprint();"
        "[target().missing() for target in targets()];"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'scipy'};"
        "print(*heavy & set(sys.modules))"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == ""
