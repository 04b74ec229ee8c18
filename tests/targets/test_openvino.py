"""What is special to OpenVINO: the batch compiled in, its precision, its telemetry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.targets.errors import StageError
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

NETWORK_WATCH = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        os.write(1, f"{event} {arguments}".encode())
sys.addaudithook(watch)
from pathlib import Path
from kdpipe.targets.openvino import OpenVino
OpenVino().compile(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_no_network_is_used(fp32: Path, tmp_path: Path) -> None:
    """Importing OpenVINO and compiling with it resolves no host, connects to none, leaves no id."""
    done = subprocess.run(
        [sys.executable, "-c", NETWORK_WATCH, fp32, tmp_path],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PATH": ""},
        check=True,
    )

    assert done.stdout == ""
    assert not (tmp_path / "intel").exists()


def test_other_fixed_batch_is_refused(fixed_batch: Path, tmp_path: Path) -> None:
    """A file with batch 4 is not turned into one with batch 1; the message says what to type."""
    with pytest.raises(StageError, match="fixed batch 4, the target asks for 1") as caught:
        OpenVino().compile(fixed_batch, tmp_path)

    assert "batch: 4" in caught.value.fix


def test_same_fixed_batch_is_kept(fixed_batch: Path, tmp_path: Path) -> None:
    """A file with batch 4 compiles for batch 4, and for a batch left as it is."""
    for target in (OpenVino(batch=4), OpenVino(batch=None)):
        folder = tmp_path / f"{target.batch}"
        folder.mkdir()
        with target.open(target.compile(fixed_batch, folder)) as session:
            assert session.batch == 4


def precisions(target: OpenVino, artifact: Path) -> set[str]:
    return {layer.precision for layer in target.audit(artifact).layers}


def test_bf16_is_a_variant_with_a_name(fp32: Path, tmp_path: Path) -> None:
    """It runs in bf16 when asked, under an id of its own, and in fp32 when not."""
    half, full = OpenVino(precision="bf16"), OpenVino(precision="fp32")
    if missing := half.missing():
        pytest.skip(missing.reason)
    for name in ("half", "full"):
        (tmp_path / name).mkdir()

    assert (half.id, half.source) == ("openvino-bf16", "fp32")
    assert precisions(half, half.compile(fp32, tmp_path / "half")) == {"bf16"}
    assert precisions(full, full.compile(fp32, tmp_path / "full")) == {"fp32"}


def test_without_bf16_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU whose flags have no bf16 is told so; fp32 and int8 run there as ever."""
    facts = {"flags": ["avx2", "avx512f"]}
    monkeypatch.setattr("kdpipe.targets.openvino.machine", lambda: facts)

    missing = OpenVino(precision="bf16").missing()

    assert missing is not None
    assert "no bf16 instructions (amx_bf16, avx512_bf16, bf16)" in missing.reason
    assert "precision: fp32" in missing.fix
    assert OpenVino(precision="int8").missing() is None


def test_fp32_under_the_name_of_bf16_is_an_error(fp32: Path, tmp_path: Path) -> None:
    """An artifact that was compiled for fp32 is not passed off as bf16."""
    artifact = OpenVino(precision="fp32").compile(fp32, tmp_path)

    with pytest.raises(StageError, match="no layer in bf16"):
        OpenVino(precision="bf16").open(artifact)


def test_other_targets_have_no_bf16() -> None:
    """The config says what a target can run in, before anything is compiled."""
    with pytest.raises(ValueError, match="it does not run in bf16; use fp32 or int8"):
        OnnxRuntime(precision="bf16")


def test_half_precision_is_an_error(fp32: Path, tmp_path: Path) -> None:
    """An artifact that would run in bf16, as OpenVINO likes to, is not opened."""
    from openvino import Core

    if "BF16" not in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    artifact = OpenVino().compile(fp32, tmp_path)
    settings = json.loads((artifact / "model.json").read_text())
    settings["properties"]["INFERENCE_PRECISION_HINT"] = "bf16"
    (artifact / "model.json").write_text(json.dumps(settings))

    with pytest.raises(StageError, match="half precision") as caught:
        OpenVino().open(artifact)

    assert "in bf16" in caught.value.found
