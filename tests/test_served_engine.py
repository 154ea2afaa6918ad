"""`m2f engine`: an export's engine, built where it will run. Here TensorRT-RTX builds; no GPU runs what it builds."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from exports import m2f_export
from lean_environment import lean_environment
from onnx_networks import network

from m2f_cli.main import main
from m2f_export.export_errors import ExportError

ROOT = Path(__file__).parents[1]

ABSENT = ("torch", "mmdet", "transformers", "tritonclient")

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


def files_in(folder):
    """Names of the files, without the folder of compiled Python that a server makes."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def m2f_engine(*arguments):
    result = CliRunner().invoke(main, ["engine", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.output


@pytest.fixture
def repository(exported, tmp_path):
    """A copy of an export in half precision, without the engine that was built with it."""
    shutil.copytree(exported[0], tmp_path / "mine")
    (tmp_path / "mine/mask2former_engine/1/model.rtx.plan").unlink()
    return tmp_path / "mine"


@pytest.mark.more
def test_it_is_built_without_torch_and_mmdetection(repository, tmp_path):
    python = lean_environment(tmp_path / "lean", "m2f[engine]", "onnxruntime")
    absent = f"import importlib.util as u; assert not any(map(u.find_spec, {ABSENT}))"
    subprocess.run([python, "-c", absent], check=True)
    command = [python, "-c", "from m2f_cli.main import main; main()", "engine", repository, "--target", "10.14.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = repository / "mask2former_engine"
    assert done.stdout.startswith("the engine was built by TensorRT-RTX")
    assert "Triton's tensorrt_plan backend cannot load it" in done.stdout
    assert f"trtexec --onnx={folder}/1/model.onnx --saveEngine={folder}/1/model.plan" in done.stderr
    assert "--optShapes=input:1x256x256x3 --maxShapes=input:8x256x256x3 --stronglyTyped --noTF32" in done.stderr
    assert "not compared with the ONNX: no GPU" in done.stderr
    made = json.loads((repository / "mask2former/export.json").read_text())["engine"]
    assert (folder / "1/model.rtx.plan").stat().st_size == made["size"]
    assert (made["backend"], made["target"], made["comparison"]) == ("TensorRT-RTX", "10.14.1", None)
    assert made["profile"] == {"batch": [1, 1, 8], "height": None, "width": None}
    assert files_in(folder / "1") == ["model.onnx", "model.py", "model.rtx.plan"]
    assert (folder / "timing.cache").stat().st_size > 0


def exports(folder, *names):
    for name in names:
        (folder / f"{name}_engine/1").mkdir(parents=True)
        (folder / name).mkdir()
        (folder / name / "export.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        ([], [], "no export in it (a folder with export.json); m2f export makes one"),
        (["parts", "cells"], [], "has several exports: give --model with one of cells, parts"),
        (["parts"], ["--model", "cells"], "has no export 'cells'; there are: parts"),
        (["parts"], [], "parts/export.json is not what m2f export writes: KeyError: 'thing_classes'"),
    ],
)
def test_what_is_not_there_is_named(names, arguments, message, tmp_path):
    code, output = m2f_engine(exports(tmp_path, *names), *arguments)
    assert code == 1
    assert message in output


def test_repositories_that_no_export_made_are_named(tmp_path):
    shipped = ROOT / "model_repository"
    before = sorted(shipped.rglob("*"))
    (tmp_path / "old/mask2former").mkdir(parents=True)
    (tmp_path / "old/export.json").write_text("{}")
    (tmp_path / "half/parts").mkdir(parents=True)
    (tmp_path / "half/parts/export.json").write_text("{}")
    for repository, message in (
        (shipped, "no export in it (a folder with export.json); m2f export makes one. Its models were not made by"),
        (tmp_path / "old", "holds an export of an earlier version: run the m2f export command that made it again"),
        (tmp_path / "half", "half/parts_engine: no such folder, though"),
        (tmp_path / "gone", "gone: no such folder"),
    ):
        code, output = m2f_engine(repository)
        assert (code, output.count("\n")) == (1, 1)
        assert message in output
    assert sorted(shipped.rglob("*")) == before


def test_it_waits_for_an_export_and_reads_what_that_has_put_there(tmp_path):
    """The first report lacks everything; the one that is there after the wait lacks only the number of classes."""
    from m2f_export.served_engine import build_in_repository

    mine = exports(tmp_path / "mine", "parts")
    descriptor = os.open(mine / "parts_engine", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    said = []

    def finish_the_export(line):
        said.append(line)
        newer = exports(tmp_path / "newer", "parts")
        (newer / "parts/export.json").write_text(
            '{"thing_classes": [], "source": "", "preprocessing": {"scale": null}}'
        )
        mine.rename(tmp_path / "older")
        newer.rename(mine)
        os.close(descriptor)

    with pytest.raises(ExportError, match="KeyError: 'classes'"):
        build_in_repository(mine, name=None, images=[], target=None, timing_cache=None, say=finish_the_export)
    assert said == [f"waiting for another command that changes {mine / 'parts_engine'}"]


class Runner:
    """A GPU's engine: the ONNX's own logits, moved by a little."""

    moved = 0.0

    def __init__(self, plan):
        from m2f_export.onnx_files import OUTPUTS, open_session

        self.outputs, self.session = OUTPUTS, open_session(plan.with_name("model.onnx"))

    def run(self, inputs):
        logits = dict(zip(self.outputs, self.session.run(list(self.outputs), inputs), strict=True))
        return {name: values + self.moved * (name == "mask_logits") for name, values in logits.items()}


def built(_model, plan, **_):
    from m2f_export.engine import TENSORRT, EngineReport

    plan.write_bytes(b"a plan")
    return EngineReport(TENSORRT, "10.14.1.48", layers=1, size=6, seconds=1.0)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """TensorRT and a GPU stand in for themselves: only what is done with their results is under test."""
    from m2f_export import served_engine

    monkeypatch.setattr(served_engine, "build_engine", built)
    monkeypatch.setattr(served_engine, "PlanRunner", Runner)
    return monkeypatch


@pytest.mark.more
@pytest.mark.usefixtures("on_a_gpu")
def test_an_engine_that_agrees_is_put_in_place(repository):
    code, output = m2f_engine(repository, "--json")
    assert code == 0
    made = json.loads((repository / "mask2former/export.json").read_text())["engine"]
    assert json.loads(output[output.index("\n{") :]) == made
    (rung,) = made["comparison"]["steps"]
    assert (rung["name"], rung["matched"], rung["extra"]) == ("TensorRT", rung["instances"], 0)
    assert (repository / "mask2former_engine/1/model.plan").read_bytes() == b"a plan"


@pytest.mark.more
@pytest.mark.usefixtures("on_a_gpu")
def test_it_is_built_for_the_version_that_triton_serves(repository):
    engine = repository / "mask2former_engine"
    shutil.copytree(engine / "1", engine / "10")
    shutil.copytree(engine / "1", engine / "9")
    assert m2f_engine(repository)[0] == 0
    assert [path.parent.name for path in engine.glob("*/model.plan")] == ["10"]
    (engine / "11").mkdir()
    code, output = m2f_engine(repository)
    assert code == 1
    assert "11/model.onnx: no such file, and Triton serves the newest version" in output


@pytest.mark.more
def test_an_engine_that_drifts_is_not_put_in_place(repository, on_a_gpu):
    on_a_gpu.setattr(Runner, "moved", 20.0)
    before = (repository / "mask2former/export.json").read_bytes()
    code, output = m2f_engine(repository)
    assert code == 1
    assert "TensorRT drifts from what came before it" in output
    assert files_in(repository / "mask2former_engine/1") == ["model.onnx", "model.py"]
    assert (repository / "mask2former/export.json").read_bytes() == before


def test_an_export_whose_engine_drifts_writes_nothing(tmp_path, on_a_gpu):
    on_a_gpu.setattr(Runner, "moved", 20.0)
    onnx.save(network(layout="uint8_hwc"), tmp_path / "net.onnx")
    (tmp_path / "net.json").write_text('{"scale": [320, 192], "class_names": ["cat", "dog", "sky"]}')
    described = [tmp_path / "net.onnx", "--describe", tmp_path / "net.json"]
    done = m2f_export(*described, "--repository", tmp_path / "mine", "--engine")
    assert done.exit_code == 1
    assert "TensorRT drifts from what came before it" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "net.onnx"]
