"""NVIDIA's management library, which comes with the driver: energy, power and memory of a GPU.

By ctypes, so that it needs no package. Functions and structures: NVML API reference guide.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, ClassVar

from kdpipe.targets.base import Missing
from kdpipe.targets.power.base import Sensor, SensorError

LIBRARY = "libnvidia-ml.so.1"
_UNKNOWN = 2**64 - 1
"""NVML_VALUE_NOT_AVAILABLE: the driver does not tell the memory of a process, in containers say."""
_ENOUGH = 256
"""Processes on a GPU whose memory can be asked for."""


class _ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t as nvmlDeviceGetComputeRunningProcesses_v3 fills it."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class Nvml(Sensor):
    """One GPU, the first that CUDA programs of this process see.

    The counter of its energy where there is one (Volta and later), else its power, which the driver
    renews every 20 to 100 ms.
    """

    name: ClassVar[str] = "nvml"
    device: ClassVar[str] = "GPU"

    def __init__(self, library: str = LIBRARY) -> None:
        self._handle = ctypes.c_void_p()
        self._why = ""
        self._nvml: Any = None
        try:
            self._nvml = ctypes.CDLL(library)
            self._call("nvmlInit_v2")
            self._find()
        except (OSError, SensorError) as error:
            self._why = str(error)
        else:
            self.cumulative = self._counts()

    def missing(self) -> Missing | None:
        """Machines without an NVIDIA GPU and its driver have none."""
        if self._why:
            return Missing(f"no NVML: {self._why}", "measure on a machine with an NVIDIA GPU")
        return None

    @property
    def what(self) -> str:
        """The name of the GPU."""
        name = ctypes.create_string_buffer(96)
        self._call("nvmlDeviceGetName", self._handle, name, len(name))
        return name.value.decode(errors="replace")

    def read(self) -> tuple[float, ...]:
        """Joules since the driver was loaded, or watts."""
        function = "TotalEnergyConsumption" if self.cumulative else "PowerUsage"
        kind = ctypes.c_ulonglong if self.cumulative else ctypes.c_uint
        return (self._get(f"nvmlDeviceGet{function}", kind()) / 1000,)

    def memory_of(self, pid: int) -> int | None:
        """Bytes on the GPU that a process holds, None where the driver does not tell."""
        count = ctypes.c_uint(_ENOUGH)
        found = (_ProcessInfo * _ENOUGH)()
        self._call(
            "nvmlDeviceGetComputeRunningProcesses_v3", self._handle, ctypes.byref(count), found
        )
        used = [one.used for one in found[: count.value] if one.pid == pid]
        return None if not used or _UNKNOWN in used else sum(used)

    def close(self) -> None:
        """Count down the library's users."""
        if not self._why:
            self._call("nvmlShutdown")

    def _find(self) -> None:
        """The GPU that CUDA shows first: by its UUID or number, where the user says which.

        Numbers are those of the PCI bus, as NVML has them, under CUDA_DEVICE_ORDER=PCI_BUS_ID; on
        machines with unlike GPUs CUDA has an order of its own without it.
        """
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
        if chosen.isdigit():
            self._call("nvmlDeviceGetHandleByIndex_v2", int(chosen), ctypes.byref(self._handle))
        else:
            given = chosen.encode()
            self._call("nvmlDeviceGetHandleByUUID", given, ctypes.byref(self._handle))

    def _counts(self) -> bool:
        try:
            self._get("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())
        except SensorError:
            return False
        return True

    def _get(self, function: str, value: Any) -> int:
        self._call(function, self._handle, ctypes.byref(value))
        return int(value.value)

    def _call(self, function: str, *arguments: Any) -> None:
        try:
            code = getattr(self._nvml, function)(*arguments)
        except AttributeError:
            raise SensorError(f"this driver has no {function}") from None
        if code != 0:
            self._nvml.nvmlErrorString.restype = ctypes.c_char_p
            reason = (self._nvml.nvmlErrorString(code) or b"unknown error").decode()
            raise SensorError(f"{function}: {reason}")


def gpu_memory(pid: int | None = None, library: str = LIBRARY) -> int | None:
    """Bytes on the GPU that this process, or another one, holds; None where nobody tells."""
    sensor = Nvml(library)
    if sensor.missing():
        return None
    try:
        return sensor.memory_of(os.getpid() if pid is None else pid)
    except SensorError:
        return None
    finally:
        sensor.close()
