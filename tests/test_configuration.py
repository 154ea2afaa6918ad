"""What `m2f serve` chooses without `--config-name`, and what it says of it."""

import shutil
from pathlib import Path

import pytest
from gpu_stages import REPOSITORY, changed, found, parity

from m2f_client import Client
from m2f_server import configuration, serve
from m2f_server.configuration import Choice, choose

NO_GPU = "no GPU: NVIDIA's driver is not installed"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with or without a GPU, with or without a Triton that has TensorRT, and an ONNX Runtime for it."""

    def make(*, gpu, tensorrt, cuda):
        monkeypatch.setattr(configuration, "gpu_trouble", lambda: None if gpu else NO_GPU)
        monkeypatch.setattr(configuration.shutil, "which", lambda _: None)
        runtime = tmp_path / "onnxruntime"
        (runtime / "capi").mkdir(parents=True)
        if cuda:
            (runtime / "capi/libonnxruntime_providers_cuda.so").touch()
        spec = type("Spec", (), {"origin": str(runtime / "__init__.py")})
        monkeypatch.setattr(configuration, "find_spec", lambda _: spec)
        backends = tmp_path / "backends"
        (backends / "tensorrt").mkdir(parents=True)
        if tensorrt:
            (backends / "tensorrt/libtriton_tensorrt.so").touch()
        return [f"--backend-directory={backends}"]

    return make


@pytest.fixture
def repository(tmp_path):
    """The engines `parts_engine` and `cells_engine`, only the first with a plan, and a model of another kind."""
    for name in ("parts_engine", "cells_engine"):
        shutil.copytree(REPOSITORY / "mask2former_engine/configs", tmp_path / "models" / name / "configs")
        (tmp_path / "models" / name / "config.pbtxt").write_text('platform: "tensorrt_plan"\n')
        (tmp_path / "models" / name / "1").mkdir()
    (tmp_path / "models/parts_engine/1/model.plan").touch()
    (tmp_path / "models/other").mkdir()
    (tmp_path / "models/other/config.pbtxt").write_text('backend: "python"\n')
    return tmp_path / "models"


def test_a_name_that_is_given_is_obeyed(repository):
    assert choose("cpu", repository) == Choice("cpu")
    assert choose("tensorrt", repository) == Choice(None)


def test_tensorrt_comes_first_where_every_engine_has_a_plan(machine, repository):
    extra_args = machine(gpu=True, tensorrt=True, cuda=True)
    (repository / "cells_engine/1/model.plan").touch()
    chosen = choose(None, repository, extra_args=extra_args)
    assert (chosen.name, chosen.label) == (None, "tensorrt")
    assert chosen.why == "there is a GPU, Triton's TensorRT backend, and a model.plan for every engine"


@pytest.mark.parametrize(
    ("has", "name", "why"),
    [
        (
            {"gpu": True, "tensorrt": True, "cuda": True},
            "gpu",
            "there is a GPU; not TensorRT: no model.plan in cells_engine (m2f engine builds one)",
        ),
        (
            {"gpu": True, "tensorrt": False, "cuda": True},
            "gpu",
            "there is a GPU; not TensorRT: this Triton has no TensorRT backend",
        ),
        (
            {"gpu": True, "tensorrt": False, "cuda": False},
            "cpu",
            "this Triton has no TensorRT backend; ONNX Runtime has no CUDA here: pip install 'm2f[gpu]'",
        ),
        ({"gpu": False, "tensorrt": True, "cuda": True}, "cpu", NO_GPU),
    ],
)
def test_else_the_fastest_that_is_there(machine, repository, has, name, why):
    assert choose(None, repository, extra_args=machine(**has)) == Choice(name, why)


def test_an_export_of_before_the_gpu_is_served_on_the_processor(machine, repository):
    extra_args = machine(gpu=True, tensorrt=False, cuda=True)
    (repository / "parts_engine/configs/gpu.pbtxt").unlink()
    chosen = choose(None, repository, extra_args=extra_args)
    assert chosen.name == "cpu"
    assert "an engine has no configs/gpu.pbtxt: export it again" in chosen.why


@pytest.mark.parametrize("load", [["parts"], ["parts_engine", "other"]])
def test_engines_that_are_not_loaded_have_no_say(machine, repository, load):
    extra_args = machine(gpu=True, tensorrt=True, cuda=True)
    for name in ("parts", "cells"):
        steps = f'step [ {{ model_name: "{name}_preprocess" }}, {{ model_name: "{name}_engine" }} ]'
        (repository / name).mkdir()
        (repository / name / "config.pbtxt").write_text(f'platform: "ensemble"\nensemble_scheduling {{ {steps} }}\n')
    assert choose(None, repository, load=load, extra_args=extra_args).label == "tensorrt"
    assert choose(None, repository, load=["parts", "cells"], extra_args=extra_args).label == "gpu"
    assert choose(None, repository, load=["other"], extra_args=extra_args) == Choice(None, "no model needs TensorRT")


def test_models_that_need_no_tensorrt_have_no_say(tmp_path):
    assert choose(None, tmp_path) == Choice(None, "no model needs TensorRT")


@pytest.mark.more
@pytest.mark.server
def test_the_configuration_gpu_answers_as_the_processors(tmp_path):
    """The processor stands in for the GPU, in the same slots: I/O binding, compiled shapes, tensors as DLPack."""
    repository = changed(Path(REPOSITORY), tmp_path / "models", {"execution_providers": "cpu"})
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        serve(model_repository=repository, config_name="gpu", **ports) as server,
        Client(f"grpc://{server.grpc_url}") as client,
    ):
        agreement = parity(client)
        picture = (Path(REPOSITORY).parent / "examples/images/scene_1.jpg").read_bytes()
        wanted = len(found(client, picture).scores)
        assert [len(result) for result in client.predict_batch([picture] * 3, score_threshold=0.3)] == [wanted] * 3
    assert agreement["instances"] == agreement["matched"] > 40
    assert (agreement["extra"], round(agreement["iou"], 3)) == (0, 1.0)


@pytest.mark.server
@pytest.mark.skipif(configuration.gpu_trouble() is None, reason="there is a GPU")
def test_the_gpu_that_is_not_there_is_refused(tmp_path):
    from m2f_server.serve_errors import ModelLoadError

    repository = changed(Path(REPOSITORY), tmp_path / "models", {})
    for path in repository.iterdir():
        if path.name != "mask2former_engine":
            shutil.rmtree(path)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        pytest.raises(ModelLoadError, match="execution_providers: cuda"),
        serve(model_repository=repository, config_name="gpu", **ports),
    ):
        pass
