"""The driver's library as the CUDA Driver API describes it: a context belongs to a thread."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets.device import cuda
from kdpipe.targets.device.cuda import CudaError, Device

DRIVER = r"""
#include <stdlib.h>
#include <string.h>
#include <stddef.h>
static __thread void *current; static int live; static int retained;
#define NEED if (!current) return 201
int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device)
{ retained++; *context = (void *)8; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return 0; }
int cuCtxSetCurrent(void *context) { current = context; return 0; }
int cuStreamCreate(void **stream, unsigned flags) { NEED; *stream = (void *)9; return 0; }
int cuStreamDestroy_v2(void *stream) { NEED; return 0; }
int cuStreamSynchronize(void *stream) { NEED; return 0; }
int cuMemAlloc_v2(void **pointer, size_t size) { NEED; live++; *pointer = malloc(size); return 0; }
int cuMemFree_v2(void *pointer) { NEED; live--; free(pointer); return 0; }
int cuMemcpyHtoDAsync_v2(void *to, void *from, size_t size, void *stream)
{ NEED; memcpy(to, from, size); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, void *from, size_t size, void *stream)
{ NEED; memcpy(to, from, size); return 0; }
int cuGetErrorString(int code, const char **text) { *text = "invalid device context"; return 0; }
int live_buffers(void) { return live; }
int retained_contexts(void) { return retained; }
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that keeps "GPU" memory on the heap, and refuses threads without a context."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "driver.c")]
    subprocess.run(command, check=True)
    monkeypatch.setattr(cuda, "LIBRARY", str(library))
    return library


def there_and_back(device: Device) -> list[float]:
    """What comes back of an array that was copied to the device."""
    given = np.arange(4, dtype=np.float32)
    found = np.empty_like(given)
    device.upload("x", given)
    device.download("x", found)
    device.wait()
    return found.tolist()


def test_another_thread_may_use_a_device(driver: Path) -> None:
    """A thread that says so can; one that does not is refused by the driver."""
    device = Device()
    found: list[list[float] | str] = []

    def refused() -> None:
        try:
            there_and_back(device)
        except CudaError as error:
            found.append(str(error))

    def served() -> None:
        device.use()
        found.append(there_and_back(device))

    for work in (refused, served):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    assert "invalid device context" in str(found[0])
    assert found[1] == [0, 1, 2, 3]


def test_everything_is_freed_from_any_thread(driver: Path) -> None:
    """Also when the thread that closes is not the one that opened."""
    device = Device()
    there_and_back(device)
    thread = threading.Thread(target=device.close)
    thread.start()
    thread.join()

    library = cuda._library()
    assert library.live_buffers() == 0
    assert library.retained_contexts() == 0
