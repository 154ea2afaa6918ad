"""Memory of an NVIDIA GPU, through the driver's own library: no toolkit, no PyTorch.

Only what running a TensorRT engine needs. Reference: https://docs.nvidia.com/cuda/cuda-driver-api/
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f_export.export_errors import ExportError

_LIBRARY = "libcuda.so.1"


class Cuda:
    """The first GPU that this process sees, with one stream.

    Attributes:
        stream: handle of the stream on which all copies run.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise ExportError(f"no GPU: NVIDIA's driver is not installed here ({error})") from error
        self._call("cuInit", 0)
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)  # the one that TensorRT uses
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        assert stream.value is not None
        self.stream = stream.value

    def allocate(self, size: int) -> int:
        """Return the address of new device memory of `size` bytes.

        Raises:
            ExportError: the device has no such memory left.
        """
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Free memory that `allocate` returned."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def to_device(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy a contiguous array to the device."""
        self._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), self._stream(),
        )  # fmt: skip

    def to_host(self, address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return device memory as an array, after all that the stream has begun."""
        array = np.empty(shape, dtype)
        self._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes), self._stream(),
        )  # fmt: skip
        self.synchronize()
        return array

    def synchronize(self) -> None:
        """Wait until the stream has done all its work."""
        self._call("cuStreamSynchronize", self._stream())

    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            raise ExportError(f"no GPU can be used: {name}: {(text.value or b'').decode() or code}")
