"""Engines on ONNX Runtime: threads and where they may run, the names of the configuration, providers, shapes."""

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import pytest

from m2f.errors import InputError
from m2f_backend import onnx_session
from m2f_backend.onnx_session import open_engine

ARGS = {
    "model_repository": str(Path(__file__).parents[1] / "model_repository/mask2former_engine"),
    "model_version": "1",
    "model_config": json.dumps(
        {"input": [{"name": "input"}], "output": [{"name": "mask_logits"}, {"name": "cls_logits"}]}
    ),
}


@pytest.fixture
def one_core():
    """This thread, and all that it starts, may use one core only."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield {max(cores)}
    os.sched_setaffinity(0, cores)


def threads_of(engine):
    return engine.session.get_session_options().intra_op_num_threads


@pytest.mark.parametrize("said", [{}, {"threads": "0"}])
def test_all_cores_are_those_that_it_may_use(one_core, said):
    before = {thread.id for thread in psutil.Process().threads()}
    engine = open_engine(ARGS, said)
    engine.run({"input": np.zeros((1, 256, 256, 3), np.uint8)})
    assert threads_of(engine) == 1
    started = {thread.id for thread in psutil.Process().threads()} - before
    assert all(os.sched_getaffinity(thread) <= one_core for thread in started)


@pytest.mark.usefixtures("one_core")
def test_a_number_that_is_stated_holds():
    assert threads_of(open_engine(ARGS, {"threads": "3"})) == 3


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("input", ["image"], "model.onnx has the inputs input; wanted are image"),
        ("input", ["input", "size"], "model.onnx has the inputs input; wanted are input, size"),
        ("output", ["pred_logits"], "model.onnx has the outputs cls_logits, mask_logits; wanted are pred_logits"),
        ("output", ["cls_logits"], None),  # more than is asked for does no harm
    ],
)
def test_the_graph_must_have_what_the_configuration_names(kind, names, message):
    config = {**json.loads(ARGS["model_config"]), kind: [{"name": name} for name in names]}
    args = {**ARGS, "model_config": json.dumps(config)}
    with pytest.raises(ValueError, match=re.escape(message)) if message else nullcontext():
        open_engine(args, {})


@pytest.mark.parametrize("device_outputs", ["false", "true"])
def test_a_batch_gives_the_outputs_of_the_configuration(device_outputs):
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    outputs = open_engine(ARGS, {"execution_providers": "cpu", "device_outputs": device_outputs}).run({"input": images})
    assert list(outputs) == ["mask_logits", "cls_logits"]
    assert outputs["mask_logits"].numpy().shape == (2, 40, 64, 64)
    assert np.array_equal(np.from_dlpack(outputs["cls_logits"]), outputs["cls_logits"].numpy())


@pytest.mark.parametrize("shape", [(1, 128, 256, 3), (256, 256, 3)])
def test_an_input_of_another_shape_is_the_clients_mistake(shape):
    message = f"input has the shape ({', '.join(map(str, shape))}); the network takes (any, 256, 256, 3)"
    with pytest.raises(InputError, match=re.escape(message)):
        open_engine(ARGS, {}).run({"input": np.zeros(shape, np.uint8)})


@pytest.mark.parametrize(
    ("providers", "message"),
    [
        ("gpu", "execution_providers: 'gpu' is unknown; allowed: cpu, cuda, tensorrt"),
        ("cpu,", "execution_providers: '' is unknown"),
        ("cuda, cpu", "execution_providers: cuda is not in this ONNX Runtime "),
    ],
)
def test_providers_are_those_that_are_there(providers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_engine(ARGS, {"execution_providers": providers})


def test_a_provider_that_does_not_start_is_not_replaced_by_the_processor(monkeypatch):
    monkeypatch.setattr(onnx_session.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnx_session.ort, "preload_dlls", lambda: None)
    with pytest.raises(ValueError, match="execution_providers: cuda does not start here"):
        open_engine(ARGS, {"execution_providers": "cuda"})


def test_a_graph_compiled_for_its_shapes_answers_as_the_one_for_all():
    images = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    general, compiled = open_engine(ARGS, {}), open_engine(ARGS, {"compiled_shapes": "2"})
    for count in (1, 3, 2, 1):  # 3 are padded to 4
        wanted, found = (engine.run({"input": images[:count]}) for engine in (general, compiled))
        for name, tensor in found.items():
            logits = tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
            assert np.allclose(logits, wanted[name].numpy(), rtol=0, atol=1e-4)


def test_a_shape_that_the_graph_does_not_take_stays_the_clients_mistake():
    with pytest.raises(InputError, match="input has the shape"):
        open_engine(ARGS, {"compiled_shapes": "2"}).run({"input": np.zeros((1, 128, 256, 3), np.uint8)})
