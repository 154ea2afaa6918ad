"""Compile `src/m2f/kernel` on the way into a wheel or an editable install.

It is a plain shared library, so one wheel serves every Python version. Without a C compiler the package installs all
the same and runs on numpy; its wheel is then tagged `any`.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES, LIBRARY = "src/m2f/kernel", "src/m2f/_kernel.so"

# Contraction to FMA would make other masks on other processors. The two last flags let comparisons become SIMD; none
# of them changes a result, and none is linked with, which could change the whole process's floating point.
FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fopenmp-simd"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)


def compile_kernel(sources: Path, library: Path, *flags: str) -> None:
    """Compile the folder's C files to one library, with the compiler that `CC` names, `cc` otherwise.

    Raises:
        OSError: there is no such compiler.
        subprocess.CalledProcessError: it fails.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    draft = library.with_suffix(f".{os.getpid()}")  # a process may be running the old one
    subprocess.run([*compiler, *FLAGS, *flags, *map(str, sorted(sources.glob("*.c"))), "-o", str(draft)], check=True)
    draft.replace(library)


class KernelBuildHook(BuildHookInterface):
    """Puts the library beside the modules that load it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before the files of the wheel are collected."""
        del version
        library = Path(self.root, LIBRARY)
        try:
            compile_kernel(Path(self.root, SOURCES), library)
        except (OSError, subprocess.CalledProcessError) as error:
            library.unlink(missing_ok=True)
            self.app.display_warning(f"m2f: no native kernel, post-processing will run on numpy ({error})")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(LIBRARY)
