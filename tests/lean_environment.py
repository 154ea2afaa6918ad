"""A virtual environment with what some requirements bring, and nothing else: links to what is installed here."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def needs(wanted):
    """The requirements of a requirement, in its extras too; m2f's own are those of this checkout."""
    if wanted.name == "m2f":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in wanted.extras)]
        return [Requirement(text) for texts in lists for text in texts]
    return [Requirement(text) for text in importlib.metadata.requires(wanted.name) or ()]


def closure(texts):
    """The names of all packages that requirements bring."""
    found, waiting = set(), [(Requirement(text), {""}) for text in texts]
    while waiting:
        wanted, extras = waiting.pop()
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if (key := (wanted.name, frozenset(wanted.extras))) not in found:
            found.add(key)
            waiting += [(need, {"", *wanted.extras}) for need in needs(wanted)]
    return {name for name, _ in found} - {"m2f"}


def lean_environment(folder, *texts):
    """Make it in `folder`; return its interpreter. m2f itself comes from this checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    packages = next(folder.glob("lib/python*/site-packages"))
    for distribution in map(importlib.metadata.distribution, closure(texts)):
        for top in {Path(str(file)).parts[0] for file in distribution.files if not str(file).startswith("..")}:
            source = Path(distribution.locate_file(top))
            if source.exists() and not (packages / top).exists():
                (packages / top).symlink_to(source)
    (packages / "m2f.pth").write_text("\n".join(str(ROOT / part) for part in ("src", "client", "export")) + "\n")
    return python
