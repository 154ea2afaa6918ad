"""The kernels that run here: the compiled one for each instruction set of the processor, and numpy."""

from __future__ import annotations

from m2f import native
from m2f.native import NativeKernel, NativeOperator
from m2f.numpy_kernel import NumpyKernel, NumpyOperator

Kernel = NativeKernel | NumpyKernel
Operator = NativeOperator | NumpyOperator

NUMPY = NumpyKernel()
KERNELS: tuple[Kernel, ...] = (*native.load(), NUMPY)  # best first
BEST = KERNELS[0]
