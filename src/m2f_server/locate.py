"""Find a `tritonserver`, and make it run Python models in the environment of this process.

In NVIDIA's container that is the server on PATH. Elsewhere it is the server inside the `nvidia-pytriton` wheel, whose
Python backend `prepare` puts together.
"""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from m2f_server.serve_errors import LibraryMissingError, ServerNotFoundError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"


@dataclass(frozen=True)
class Installation:
    """A server that can be started.

    Attributes:
        binary: the executable.
        arguments: command-line options that this installation needs.
        environment: environment variables to set in addition to the caller's.
    """

    binary: Path
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def prepare(work_dir: Path) -> Installation:
    """Return the server to start: the one on PATH, else the wheel's.

    Args:
        work_dir: folder in which the wheel's server is put together.

    Raises:
        ServerNotFoundError: there is no server, or the wheel has no backend for this Python version.
        LibraryMissingError: the wheel's Python backend needs a libpython that is missing.
    """
    if on_path := shutil.which("tritonserver"):
        return Installation(binary=Path(on_path))
    package = _wheel_package()
    root = package / "tritonserver"
    libpython, home = find_libpython()
    own = work_dir / "lib"  # has that library alone: its neighbours must not replace the server's libraries
    own.mkdir()
    (own / LIBPYTHON).symlink_to(libpython)
    return Installation(
        binary=root / "bin" / "tritonserver",
        arguments=(f"--backend-directory={_compose_backends(root, work_dir)}",),
        environment={
            "PATH": _prepend(_compose_python(home, work_dir) / "bin", os.environ.get("PATH", os.defpath)),
            "LD_LIBRARY_PATH": _prepend(
                package.parent / "nvidia_pytriton.libs", own, os.environ.get("LD_LIBRARY_PATH")
            ),
        },
    )


def find_libpython() -> tuple[Path, Path]:
    """Return the shared library of this Python version and the prefix of its standard library.

    The library is the running interpreter's, else the system's.

    Raises:
        LibraryMissingError: there is no such library; the message says how to install it.
    """
    own = own_libpython()
    if own is not None:
        return own, Path(sys.base_prefix)
    system = system_libpython()
    if system is not None:
        stdlib = Path("lib") / f"python{PYTHON}" / "os.py"
        home = next((parent for parent in system.parents if (parent / stdlib).is_file()), None)
        if home is not None:
            return system, home
    raise LibraryMissingError(
        f"{LIBPYTHON} is missing, and Triton's Python models need it: install it (Debian, Ubuntu: apt-get install "
        f"libpython{PYTHON}; Fedora: dnf install python3-libs) or use a Python {PYTHON} built with --enable-shared "
        "(conda's and uv's are; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def own_libpython() -> Path | None:
    """Return the running interpreter's library, or None if it was built without one."""
    base = Path(sys.base_prefix) / "lib"
    folders = [sysconfig.get_config_var("LIBDIR"), base, base / (sysconfig.get_config_var("MULTIARCH") or "")]
    return next((path for folder in folders if folder and (path := Path(folder) / LIBPYTHON).is_file()), None)


def system_libpython() -> Path | None:
    """Return the library that the system's loader finds, or None."""
    ldconfig = shutil.which("ldconfig", path=os.pathsep.join([os.environ.get("PATH", ""), "/sbin", "/usr/sbin"]))
    if ldconfig is None:
        return None
    listing = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
    found = (line.rpartition("=> ")[2] for line in listing.splitlines() if line.strip().startswith(f"{LIBPYTHON} "))
    return next((Path(path) for path in found), None)


def _wheel_package() -> Path:
    """Return the folder of the installed `pytriton` package without importing the package."""
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerNotFoundError(
            "no tritonserver: there is none on PATH, and nvidia-pytriton is not installed here (pip install "
            "'m2f[server]' on x86-64 Linux with Python 3.10 to 3.12, or run inside NVIDIA's Triton container)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _compose_backends(root: Path, work_dir: Path) -> Path:
    """Link the wheel's Python backend and the stub of this Python version into one folder, as Triton expects."""
    stub = root / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        have = ", ".join(sorted(p.name for p in stub.parent.parent.glob("*")))
        raise ServerNotFoundError(f"nvidia-pytriton has no Python backend for Python {PYTHON} (it has: {have})")
    backends = work_dir / "backends"
    (backends / "python").mkdir(parents=True)
    for source in [*(root / "backends" / "python").iterdir(), stub]:
        (backends / "python" / source.name).symlink_to(source)
    return backends


def _compose_python(home: Path, work_dir: Path) -> Path:
    """Make a virtual environment with the packages of this process, and return its folder.

    The interpreter in a stub takes its standard library and packages from the `pyvenv.cfg` beside the first `python3`
    on PATH (`triton_2_51` says why nothing else works).
    """
    venv = work_dir / "python"
    packages = venv / "lib" / f"python{PYTHON}" / "site-packages"
    packages.mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin" / "python3").symlink_to(sys.executable)
    (venv / "pyvenv.cfg").write_text(f"home = {home / 'bin'}\ninclude-system-site-packages = false\n")
    python_path = [
        p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and not sys.flags.ignore_environment
    ]
    site_folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    lines = [str(Path(p).absolute()) for p in python_path]
    # addsitedir also reads .pth files, which editable installs need
    lines += [f"import site; site.addsitedir({folder!r})" for folder in site_folders]
    (packages / "m2f_serve.pth").write_text("\n".join(lines) + "\n")
    return venv


def _prepend(*entries: Path | str | None) -> str:
    """Join the entries of a search path, without empty ones."""
    return os.pathsep.join(str(entry) for entry in entries if entry)
