"""The kernels that run here: the compiled one for each instruction set of the processor, and numpy."""

from __future__ import annotations

from m2f import native
from m2f.errors import InputError
from m2f.native import NativeKernel, NativeOperator
from m2f.numpy_kernel import NumpyKernel, NumpyOperator

Kernel = NativeKernel | NumpyKernel
Operator = NativeOperator | NumpyOperator

NUMPY = NumpyKernel()
KERNELS: tuple[Kernel, ...] = (*native.load(), NUMPY)  # best first
BEST = KERNELS[0]


def find_kernel(name: str) -> Kernel:
    """Return the kernel of a name: `avx512`, `avx2`, `baseline` or `numpy`.

    Raises:
        InputError: no kernel of this name runs here.
    """
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    raise InputError(f"kernel {name!r} cannot run here; allowed: {', '.join(map(str, KERNELS))}")
