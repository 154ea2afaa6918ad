"""pyproject.toml: each extra brings what its code imports, and nothing else."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"base": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
SERVER = ["src/m2f", "src/m2f_backend", "src/m2f_server", "model_repository"]
CODE = {
    "base": ["src"],
    "models": SERVER,
    "server": SERVER,
    "client": ["client/m2f_client", "src/m2f", "src/m2f_cli/predict.py"],
    "video": ["client/m2f_client/predict"],
    "large": ["client/m2f_client/pictures", "client/m2f_client/converters"],
    "parquet": ["client/m2f_client/predict"],
    "convert": ["client/m2f_client"],
    "demo": ["client/m2f_client/page"],
    "eval": ["client/m2f_client/evaluation"],
    "export": ["export/m2f_export", "examples/shapes"],
}
TOOLS = {"engine", "gpu", "docs", "test", "dev"}
STORES = {"s3", "gs", "az"}  # fsspec imports their packages by the scheme of an address
INDIRECT = {  # what packages import that do not require it
    "client": {"geventhttpclient", "sniffio"},  # tritonclient.http; httpcore
    "export": {"setuptools"},  # mmengine: pkg_resources
}


def requirements(extra):
    found = [Requirement(text) for text in EXTRAS[extra]]
    return {canonicalize_name(requirement.name): requirement for requirement in found if requirement.name != "m2f"}


def imports(folder):
    """Return the top-level modules that the folder's files, or one file, import or look for."""
    path = ROOT / folder
    found = set()
    for file in [path] if path.is_file() else path.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "find_spec":
                found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def test_every_extra_is_checked():
    assert set(EXTRAS) == {*CODE, *TOOLS, *STORES}


@pytest.mark.torch
@pytest.mark.parametrize("extra", CODE)
def test_what_an_extra_brings_is_imported(extra):
    of = {}
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names:
            of.setdefault(canonicalize_name(name), set()).add(module)
    imported = set().union(*map(imports, CODE[extra]))
    unused = {name for name in requirements(extra) if not of[name] & imported} - INDIRECT.get(extra, set())
    if extra == "export":
        lines = (ROOT / "export/openmmlab.txt").read_text().splitlines()
        names = [Requirement(line).name for line in lines if not line.startswith("#")]
        needed = [Requirement(text) for name in names for text in importlib.metadata.requires(name)]
        needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
        unused -= {canonicalize_name(requirement.name) for requirement in needed}
    assert unused == set()


def test_the_caps_are_of_the_server_alone():
    capped = {
        (extra, name)
        for extra in CODE
        for name, requirement in requirements(extra).items()
        if name in ("numpy", "opencv-python-headless") and "<" in str(requirement.specifier).replace("<=", "<")
    }
    assert capped == {("server", "numpy"), ("server", "opencv-python-headless")}
    assert "<" not in PROJECT["requires-python"]


def test_the_gpu_differs_from_the_server_by_what_computes():
    server, gpu = ({str(one) for one in requirements(extra).values()} for extra in ("server", "gpu"))
    assert {text.split(">")[0] for text in server ^ gpu} == {"onnxruntime", "openvino", "onnxruntime-gpu[cuda,cudnn]"}


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_the_client_needs_nothing_of_the_server(command):
    names = sorted(
        {*requirements("models"), *requirements("server")} - {*requirements("client"), *requirements("base")}
    )
    assert "prometheus-client" in names
    code = f"import sys; sys.modules.update(dict.fromkeys({[name.replace('-', '_') for name in names]}))"
    code += "; from m2f_cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "Usage:" in run.stdout
