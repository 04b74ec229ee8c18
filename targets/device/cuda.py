"""GPU memory through the driver's own library: no torch, no CUDA toolkit, only ctypes.

`libcuda` comes with the driver under one name on every system, Jetson included, where the
versions of the CUDA runtime's library differ. Functions: CUDA Driver API reference.
"""

import ctypes
import os
from typing import TYPE_CHECKING, Any, Dict  # noqa: UP035 (this file runs on Python 3.8)

if TYPE_CHECKING:
    import numpy as np

LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"


class CudaError(RuntimeError):
    """A call of the CUDA driver failed; says which and why."""


def gpus() -> int:
    """How many GPUs the driver shows, at least 1; raises CudaError saying why there is none."""
    cuda = _library()
    count = ctypes.c_int()
    _call(cuda, "cuInit", 0)
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise CudaError("the driver shows no GPU")
    return count.value


class Device:
    """One GPU: its primary context, a stream, and buffers that grow as needed."""

    def __init__(self, index: int = 0) -> None:
        self._cuda = _library()
        self._buffers: Dict[str, Any] = {}  # noqa: UP006
        self._handle = ctypes.c_int()
        self._context = ctypes.c_void_p()
        stream = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._handle), index)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._handle)
        self.use()
        self._call("cuStreamCreate", ctypes.byref(stream), 1)  # 1: waits for no other stream
        self._stream = stream

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream.value or 0)

    def use(self) -> None:
        """Make this GPU the one of the calling thread; every thread has to, before it works."""
        self._call("cuCtxSetCurrent", self._context)

    def buffer(self, name: str, size: int) -> int:
        """Address of at least `size` bytes kept under `name`; what it held is lost if it grows."""
        pointer, has = self._buffers.get(name, (ctypes.c_uint64(), 0))
        if has < max(1, size):
            if has:
                del self._buffers[name]
                self._call("cuMemFree_v2", pointer)
            pointer = ctypes.c_uint64()
            self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)))
            self._buffers[name] = (pointer, max(1, size))
        return int(pointer.value)

    def upload(self, name: str, array: "np.ndarray") -> int:
        """Copy a contiguous array to the buffer `name` on the stream; returns the address."""
        address = self.buffer(name, array.nbytes)
        self._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )
        return address

    def download(self, name: str, array: "np.ndarray") -> None:
        """Copy the buffer `name` into `array` on the stream; `wait` before reading it."""
        pointer, _ = self._buffers[name]
        self._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(array.ctypes.data),
            pointer,
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )

    def wait(self) -> None:
        """Until everything put on the stream is done."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free buffers, stream and context, from any thread."""
        self.use()
        while self._buffers:
            _, (pointer, _) = self._buffers.popitem()
            self._call("cuMemFree_v2", pointer)
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._handle)

    def _call(self, function: str, *arguments: Any) -> None:
        _call(self._cuda, function, *arguments)


def _library() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise CudaError(f"no NVIDIA driver: {error}") from error


def _call(cuda: Any, function: str, *arguments: Any) -> None:
    code = getattr(cuda, function)(*arguments)
    if code != 0:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode()
        raise CudaError(f"{function} failed: {reason} ({code})")
