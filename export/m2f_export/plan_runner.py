"""Run a TensorRT engine on this machine's GPU, to compare it and to time it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f_export.cuda_driver import Cuda
from m2f_export.engine import error_log, load_tensorrt
from m2f_export.export_errors import ExportError

Arrays = dict[str, npt.NDArray[Any]]


class PlanRunner:
    """An engine on the GPU, for one request at a time.

    Args:
        plan: the engine's file.

    Raises:
        ExportError: there is no GPU, or TensorRT cannot load the engine on it.
    """

    def __init__(self, plan: Path) -> None:
        trt, backend = load_tensorrt()
        self._trt, self._cuda = trt, Cuda()
        self._log = error_log(trt)
        self._runtime = trt.Runtime(self._log)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        self._context = self._engine and self._engine.create_execution_context()
        if not self._context:
            raise ExportError(f"{backend} {trt.__version__} cannot load {plan}: {self._log.summary()}")
        self._memory: dict[str, tuple[int, int]] = {}  # address and size by tensor

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Compute a batch.

        Raises:
            ExportError: the engine's profile does not take these shapes, or the engine fails.
        """
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise ExportError(f"the engine does not take {name} {array.shape}: {self._log.summary()}")
            self._cuda.to_device(np.ascontiguousarray(array), self._place(name, array.nbytes))
        outputs = self._bind_outputs()
        self.launch()
        return {
            name: self._cuda.to_host(self._memory[name][0], shape, dtype) for name, (shape, dtype) in outputs.items()
        }

    def launch(self) -> None:
        """Compute the batch of the last `run` once more, on the device alone, and wait for the end.

        Raises:
            ExportError: the engine fails.
        """
        if not self._context.execute_async_v3(self._cuda.stream):
            raise ExportError(f"the engine fails: {self._log.summary()}")
        self._cuda.synchronize()

    def _bind_outputs(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        outputs = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            if self._engine.get_tensor_mode(name) != self._trt.TensorIOMode.OUTPUT:
                continue
            shape = tuple(self._context.get_tensor_shape(name))
            dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
            self._place(name, int(np.prod(shape)) * dtype.itemsize)
            outputs[name] = shape, dtype
        return outputs

    def _place(self, name: str, size: int) -> int:
        """Give a tensor device memory of at least `size` bytes, and return its address."""
        address, has = self._memory.get(name, (0, -1))
        if has < size:
            if address:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._memory[name] = address, size
        self._context.set_tensor_address(name, address)
        return address
