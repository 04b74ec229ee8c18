"""Memory does not grow with the data: a process reads far more than it may hold."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

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

source, out = map(Path, sys.argv[1:])
data = Data.model_validate({"source": {"kind": "idx", "folder": source}})
before = peak()
data.run(DataInputs(TASKS[0]()), Work(out, out, Silent()))
dataset = Dataset(out)
seen = sum(len(labels) for _, labels in dataset.train.batches(256))
print(before, peak(), seen)
"""


def write_idx(path: Path, shape: tuple[int, ...], content: list[bytes]) -> None:
    header = bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header)
        stream.writelines(content)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_far_below_the_data(tmp_path: Path):
    """Storing and then reading 154 MB of gzipped pixels takes less than 60 MB."""
    frames = [bytes([level]) * SIDE * SIDE for level in range(250)]
    for prefix, count in (("train", COUNT), ("t10k", 250)):
        write_idx(
            tmp_path / f"{prefix}-images-idx3-ubyte.gz",
            (count, SIDE, SIDE),
            frames * (count // 250),
        )
        labels = [bytes(range(10)) * (count // 10)]
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", (count,), labels)
    out = tmp_path / "out"
    out.mkdir()

    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    before, after, seen = map(int, done.stdout.split())
    assert seen == COUNT
    assert (out / "train.images.npy").stat().st_size > 150e6
    assert after - before < 60
