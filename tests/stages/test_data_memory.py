"""Memory does not grow with the data: a process reads far more than it may hold."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

COUNT, SIDE = 37_500, 64  # 154 MB of pixels
PROGRAM = """
import sys
from pathlib import Path
from kdpipe.stages.base import Silent, Work
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.tasks import TASKS

def peak():
    (line,) = [l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l]
    return int(line.split()[1]) // 1024

kind, field, source, task, batch, out = sys.argv[1:]
out = Path(out)
(task,) = [t for t in TASKS if t.model_fields["kind"].default == task]
data = Data.model_validate({"source": {"kind": kind, field: source}})
before = peak()
data.run(DataInputs(task()), Work(out, out, Silent()))
dataset = Dataset(out)
seen = sum(len(labels) for _, labels in dataset.train.batches(int(batch)))
print(before, peak(), seen)
"""
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from /proc"
)


def write_idx(path: Path, shape: tuple[int, ...], content: list[bytes]) -> None:
    header = bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header)
        stream.writelines(content)


def write_npz(path: Path, arrays: dict[str, tuple[tuple[int, ...], list[bytes]]]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, (shape, content) in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
                for block in content:
                    stream.write(block)


def grown(out: Path, *arguments: str) -> tuple[int, int]:
    """MB by which the peak grew while data was stored and read, and how many samples were read."""
    out.mkdir()
    command = [sys.executable, "-c", PROGRAM, *arguments, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after, seen = map(int, done.stdout.split())
    return after - before, seen


@needs_proc
def test_memory_stays_far_below_the_data(tmp_path: Path):
    """Storing and then reading 154 MB of gzipped pixels takes less than 60 MB."""
    frames = [bytes([level]) * SIDE * SIDE for level in range(250)]
    held = [bytes([level, 255]) * (SIDE * SIDE // 2) for level in range(250)]
    for prefix, count, content in (("train", COUNT, frames), ("t10k", 250, held)):
        write_idx(
            tmp_path / f"{prefix}-images-idx3-ubyte.gz",
            (count, SIDE, SIDE),
            content * (count // 250),
        )
        labels = [bytes(range(10)) * (count // 10)]
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", (count,), labels)
    out = tmp_path / "out"

    growth, seen = grown(out, "idx", "folder", str(tmp_path), "classification", "256")

    assert seen == COUNT
    assert (out / "train.images.npy").stat().st_size > 150e6
    assert growth < 60


@needs_proc
def test_memory_stays_far_below_label_maps(tmp_path: Path):
    """So it does for 157 MB of maps beside as many pixels, read back in batches."""
    count, side = 2400, 256
    images = [bytes([level]) * side * side for level in range(240)] * (count // 240)
    maps = [bytes(side * side // 2) + bytes([1]) * (side * side // 2)] * count
    shape = (count, side, side)
    held = [bytes([level, 255]) * (side * side // 2) for level in (9, 8)]
    write_npz(
        tmp_path / "d.npz",
        {
            "train_images": (shape, images),
            "train_labels": (shape, maps),
            "eval_images": ((2, side, side), held),
            "eval_labels": ((2, side, side), maps[:2]),
        },
    )
    out = tmp_path / "out"

    growth, seen = grown(out, "npz", "file", str(tmp_path / "d.npz"), "segmentation", "8")

    assert seen == count
    assert (out / "train.labels.npy").stat().st_size > 150e6
    assert growth < 60
