"""Compile `src/m2f/kernel` when a wheel or an editable install of m2f is built.

The kernel is a plain shared library that does not use Python, so one wheel serves every Python version. Where there is
no C compiler, or the kernel does not compile, the package is built without it, runs on NumPy, and its wheel is tagged
`any`.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES, LIBRARY = "src/m2f/kernel", "src/m2f/_kernel.so"

# No fused multiply-add (-ffp-contract=off): masks would differ between processors. The last two flags let the compiler
# turn comparisons into SIMD instructions, without changing a result. None of the flags is passed to a linker that would
# change the floating-point mode of the whole process, as -ffast-math does.
FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fopenmp-simd"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)


def compile_kernel(sources: Path, library: Path, *flags: str) -> None:
    """Compile all C files of a folder to one shared library, with the compiler in `CC` or else `cc`.

    Args:
        sources: folder of the C files.
        library: file to write; an existing file is replaced at once, so that processes that use it keep the old one.
        flags: further flags of the compiler.

    Raises:
        OSError: the compiler does not exist.
        subprocess.CalledProcessError: the compiler reports an error.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    draft = library.with_suffix(f".{os.getpid()}")
    subprocess.run([*compiler, *FLAGS, *flags, *map(str, sorted(sources.glob("*.c"))), "-o", str(draft)], check=True)
    draft.replace(library)


class KernelBuildHook(BuildHookInterface):
    """Adds the compiled kernel to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernel before the files of the wheel are collected."""
        del version
        library = Path(self.root, LIBRARY)
        try:
            compile_kernel(Path(self.root, SOURCES), library)
        except (OSError, subprocess.CalledProcessError) as error:
            library.unlink(missing_ok=True)
            self.app.display_warning(f"m2f: built without the native kernel; post-processing runs on NumPy ({error})")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(LIBRARY)
