"""`make setup` on machines with other interpreters, systems and half-made environments; nothing is downloaded."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ["cat", "chmod", "dirname", "getconf", "grep", "ln", "make", "mkdir", "mktemp", "rm", "sh", "tail", "touch"]
PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then
    exec {real} -c "{pretend}; exec(sys.argv[1])" "$2"
fi
mkdir -p "$3/bin" # python -m venv FOLDER
ln -s {path} "$3/bin/python"
cat >"$3/bin/pip" <<'END'
#!/bin/sh
[ ! -e {folder}/pip-fails ] || {{ echo "ERROR: No matching distribution found"; exit 1; }}
echo "{name}: pip $*" >>{folder}/log
case "$*" in *" uv") ln -s {folder}/uv "$(dirname "$0")/uv" ;; esac
END
chmod +x "$3/bin/pip"
"""
UV = """#!/bin/sh
case "$2" in
install) [ -e {folder}/uv-python ] || {{ echo "error: Failed to install cpython-3.12
  cause: dns error"; exit 2; }} ;;
find) echo {folder}/uv-python ;;
esac
"""


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)


class Machine:
    """A project and a PATH on which there is nothing but a few tools and the interpreters that a test adds."""

    def __init__(self, folder):
        self.project, self.bin, self.folder = folder / "project", folder / "bin", folder
        for new in (self.project, self.bin, folder / "tmp"):
            new.mkdir()
        for name in ("Makefile", "setup_env.sh"):
            shutil.copy(ROOT / name, self.project)
        for name in ("pyproject.toml", "hatch_build.py"):
            (self.project / name).touch()
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.system("Linux", "x86_64")
        script(folder / "uv", UV.format(folder=folder))

    def system(self, name, processor, libc="glibc 2.36"):
        script(self.bin / "uname", f'#!/bin/sh\n[ "$1" = -s ] && echo {name} || echo {processor}\n')
        (self.bin / "getconf").unlink()
        script(self.bin / "getconf", f'#!/bin/sh\n[ "$1" = _NPROCESSORS_ONLN ] && echo 2 || echo {libc}\n')

    def python(self, name, version, libpython=True, venv=True, path=None):
        pretend = f"import ctypes, sys; sys.version_info = ({version.replace('.', ', ')}, 0)"
        pretend += "; ctypes.CDLL = " + ("str" if libpython else "lambda name: open('')")
        pretend += "" if venv else "; sys.modules['ensurepip'] = None"
        path = path or self.bin / name
        text = PYTHON.format(real=sys.executable, pretend=pretend, path=path, folder=self.folder, name=name)
        script(path, text)

    def make(self, *arguments):
        environment = {"PATH": str(self.bin), "HOME": str(self.folder), "TMPDIR": str(self.folder / "tmp")}
        command = [self.bin / "make", "--no-print-directory", *arguments]
        run = subprocess.run(
            command, cwd=self.project, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert not list((self.folder / "tmp").iterdir())
        return run

    def installed(self):
        """Tell what pip was asked, by which interpreter, and forget it."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.replace(" --quiet --disable-pip-version-check", "") for line in lines]

    def takes(self, name, *arguments):
        run = self.make("setup", *arguments)
        assert run.returncode == 0, run.stderr
        assert self.installed()[-1:] == [f"{name}: pip install --editable .[server,client]"]
        assert (self.project / ".venv/.serve").exists()

    def refuses(self, *arguments):
        run = self.make("setup", *arguments)
        assert run.returncode == 2
        assert not (self.project / ".venv").exists()
        (line,) = [line for line in run.stderr.splitlines() if not line.startswith("make: ")]
        return line


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3": "3.13", "python3.13": "3.13", "python3.11": "3.11", "python3.10": "3.10"}, "python3.11"),
        ({"python3": "3.11", "python3.11": "3.11", "python3.12": "3.12"}, "python3.12"),
        ({"python3": "3.10"}, "python3"),
    ],
)
def test_the_newest_that_can_serve_is_taken(machine, there, taken):
    for name, version in there.items():
        machine.python(name, version)
    machine.takes(taken)
    machine.make("setup")
    assert machine.installed() == []  # nothing to do


def test_one_that_cannot_serve_is_passed_over(machine):
    machine.python("python3.12", "3.12", libpython=False)
    script(machine.bin / "python3.11", "#!/bin/sh\necho pyenv: python3.11: command not found >&2\nexit 127\n")
    machine.python("python3.10", "3.10")
    machine.takes("python3.10")


def test_one_of_pyenv_is_found(machine):
    machine.python("python3", "3.13")
    folder = machine.folder / ".pyenv/versions/3.11.7/bin"
    folder.mkdir(parents=True)
    machine.python("pyenv", "3.11", path=folder / "python3")
    machine.takes("pyenv")


def test_a_given_interpreter_is_checked_and_no_other_is_looked_for(machine):
    machine.python("python3.12", "3.12")
    machine.python("python3.10", "3.10")
    machine.python("python3.13", "3.13")
    machine.python("bare", "3.11", libpython=False)
    needs = "m2f: the server needs Python 3.10, 3.11 or 3.12, and PYTHON={0} cannot be used: "
    assert machine.refuses("PYTHON=python3.13") == needs.format("python3.13") + "python3.13 is Python 3.13"
    assert machine.refuses("PYTHON=python3.9") == needs.format("python3.9") + "it does not start"
    hint = "bare has no libpython3.11.so.1.0 (Debian, Ubuntu: apt-get install libpython3.11)"
    assert machine.refuses("PYTHON=bare") == needs.format("bare") + hint
    machine.takes("python3.10", "PYTHON=python3.10")


@pytest.mark.parametrize("on_path", [True, False])
def test_uv_brings_one(machine, on_path):
    machine.python("python3", "3.13")
    machine.python("brought", "3.12", path=machine.folder / "uv-python")
    if on_path:
        (machine.bin / "uv").symlink_to(machine.folder / "uv")
    machine.takes("brought")


def test_without_any_one_line_says_what_to_install_and_the_next_run_recovers(machine):
    machine.python("python3", "3.13")
    machine.python("python3.11", "3.11", venv=False)
    line = machine.refuses()
    assert line.startswith("m2f: the server needs Python 3.10, 3.11 or 3.12; uv could not bring one (error: Failed to ")
    assert "cause: dns error). Install Python 3.12 (Fedora: dnf install python3.12; " in line
    said = machine.make("setup").stdout
    assert "python3.11 has no venv (Debian, Ubuntu: apt-get install python3.11-venv), python3 is Python 3.13" in said
    machine.python("python3.11", "3.11")
    machine.takes("python3.11")


def test_a_failed_set_up_leaves_nothing_behind(machine):
    machine.python("python3.11", "3.11")
    (machine.folder / "pip-fails").touch()
    assert machine.refuses() == ("m2f: the set-up failed, see above; .venv was removed, and the next run starts anew")
    (machine.folder / "pip-fails").unlink()
    machine.takes("python3.11")


def test_an_unfinished_environment_is_made_anew(machine):
    machine.python("python3.11", "3.11")
    machine.python("python3", "3.13")
    subprocess.run([machine.bin / "python3", "-m", "venv", machine.project / ".venv"], check=True)
    machine.takes("python3.11")


def test_a_finished_environment_is_updated_in_place(machine):
    machine.python("python3.11", "3.11")
    machine.takes("python3.11")
    mine = machine.project / ".venv/mine"
    mine.touch()
    machine.python("python3.12", "3.12")
    script(machine.project / "setup_env.sh", (machine.project / "setup_env.sh").read_text())  # newer than the stamp
    (machine.folder / "pip-fails").touch()
    assert machine.make("setup").returncode == 2
    assert mine.exists()
    (machine.folder / "pip-fails").unlink()
    machine.takes("python3.11")
    (machine.bin / "python3.11").unlink()  # an upgrade of the system removed it
    script(machine.project / "setup_env.sh", (machine.project / "setup_env.sh").read_text())
    machine.takes("python3.12")
    assert not mine.exists()


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        (("Linux", "aarch64"), "needs x86-64 Linux, and this is Linux aarch64"),
        (("Darwin", "arm64"), "needs x86-64 Linux, and this is Darwin arm64"),
        (("Linux", "x86_64", "glibc 2.31"), "needs glibc 2.35 or newer, and this system has glibc 2.31"),
        (("Linux", "x86_64", "; exit 1"), "needs glibc 2.35 or newer, and this system has no glibc"),  # Alpine
    ],
)
def test_another_system_is_told_what_works_there(machine, system, reason):
    machine.python("python3.11", "3.11")
    machine.system(*system)
    assert machine.refuses() == (
        f"m2f: the bundled server {reason}. "
        "Here you can use the client (pip install 'm2f[client]'), or run the server in NVIDIA's Triton container."
    )


def test_the_newest_interpreter_tests_the_client(machine):
    machine.python("python3.12", "3.12")
    machine.python("python3.13", "3.13", libpython=False)
    run = machine.make(".venv/.newest")
    assert run.returncode == 0, run.stderr
    assert [line.partition(":")[0] for line in machine.installed()] == ["python3.12", "python3.13"]
    assert (machine.project / ".venv/newest/bin/pip").exists()
