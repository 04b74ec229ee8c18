"""What is special to OpenVINO: the batch compiled in, its precision, its telemetry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.targets.errors import StageError
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
