"""The serving matrix, driven by perf_analyzer: ensembles, outputs, transports, batches, dynamic batching.

perf_analyzer asks for every output that a model declares. So each group of outputs gets a copy of the repository whose
ensembles declare these outputs only, as a client would ask for them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import np_to_triton_dtype

from m2f.contract import OUTPUTS, PUBLIC_MODEL, RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f.ensembles import Ensemble, read_ensemble
from m2f.preprocess import Preprocessing
from m2f_server import serve

from .frame import Part, Row, Table, pivot
from .perf_analyzer import TRANSPORTS, Steps, Target, measure, server_preprocessing, write_inputs

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = ROOT / "model_repository"
IMAGES = sorted((ROOT / "examples/images").glob("scene_*.jpg"))
Arrays = dict[str, npt.NDArray[Any]]
GROUPS: dict[str, Sequence[str]] = {
    "structured": STRUCTURED_OUTPUTS,
    "dense": ("num_instances", "scores", "labels", "boxes", "masks"),
    "raw": RAW_OUTPUTS,
    "all": tuple(output.name for output in OUTPUTS),
}
TAKES = {"image": "encoded images", "tensor": "the engine's input"}
IN_FLIGHT = 4


@dataclass(frozen=True)
class Stage:
    """A running server.

    Attributes:
        target: its addresses.
        ensembles: by what they take, `image` or `tensor`.
        inputs: perf_analyzer's file of inputs, likewise.
    """

    target: Target
    ensembles: Mapping[str, Ensemble]
    inputs: Mapping[str, Path]


def part(*, quick: bool, repository: Path = REPOSITORY, model: str = PUBLIC_MODEL) -> Part:
    """Return the matrix.

    Args:
        quick: structured outputs only.
        repository: the folder of models.
        model: name of the public ensemble in it.
    """
    groups, batching, takes, batches = (
        (["structured"], ["on"], ["image"], [1, 8]) if quick else (list(GROUPS), ["on", "off"], list(TAKES), [1, 4, 8])
    )
    names = ("outputs", "batching", "takes", "transport", "batch")
    cells = [dict(zip(names, cell, strict=True)) for cell in product(groups, batching, takes, TRANSPORTS, batches)]
    return Part(
        name="serving",
        title="The serving matrix",
        about=f"perf_analyzer on `{model}`, {IN_FLIGHT} requests in flight, client and server on the same cores.",
        cells=cells,
        shared=("outputs", "batching"),
        stage=partial(served, repository, model),
        measure=partial(measured, window_s=0.5),
        tables=tables,
        draw=draw,
    )


def measured(
    stage: Stage, *, takes: str, transport: str, batch: int, window_s: float, **_: Any
) -> list[dict[str, float]]:
    """Measure one cell."""
    ensemble = stage.ensembles[takes]
    steps = Steps(stage.target.http_url, ensemble)
    row = measure(
        stage.target,
        ensemble.name,
        inputs=stage.inputs[takes],
        transport=transport,
        in_flight=IN_FLIGHT,
        batch=batch,
        window_s=window_s,
    )
    return [{**row, **steps.milliseconds()}]


@contextmanager
def served(repository: Path, model: str, *, outputs: str, batching: str) -> Iterator[Stage]:
    """Serve a model with a group of outputs, for the length of the `with` block."""
    ensembles = find_ensembles(repository, model)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with tempfile.TemporaryDirectory(prefix="m2f_benchmark_") as temporary:
        folder = Path(temporary)
        copy_repository(repository.absolute(), folder / "models", ensembles, GROUPS[outputs], batching=batching == "on")
        with serve(model_repository=folder / "models", **ports) as server:
            target = Target(server.http_url, server.grpc_url, server.access.headers)
            preprocessing = server_preprocessing(target.http_url, ensembles["image"].preprocess or "")
            requests = {
                takes: _requests(preprocessing, read(folder / "models" / ensemble.name / "config.pbtxt"))
                for takes, ensemble in ensembles.items()
            }
            check(target, {ensembles[takes].name: arrays[0] for takes, arrays in requests.items()})
            inputs = {takes: folder / f"{takes}.json" for takes in ensembles}
            for takes, path in inputs.items():
                write_inputs(path, requests[takes])
            yield Stage(target, ensembles, inputs)


def _requests(preprocessing: Preprocessing, config: Any) -> list[Arrays]:
    """Return the inputs of an ensemble for each picture."""
    taken = {tensor.name for tensor in config.input}
    found = []
    for path in IMAGES:
        encoded = path.read_bytes()
        batch, img_shape, ori_shape = preprocessing([encoded])
        shapes = {"img_shape": img_shape[0], "ori_shape": ori_shape[0]}
        arrays = {"image": np.array([encoded], object), "input": batch[0], **shapes}
        found.append({name: array for name, array in arrays.items() if name in taken})
    return found


def find_ensembles(repository: Path, model: str) -> dict[str, Ensemble]:
    """Return the public ensemble of a model, and the one that takes the input of the same engine.

    Raises:
        ValueError: the repository has no such public ensemble.
    """
    found = [
        read_ensemble(MessageToDict(read(path), preserving_proto_field_name=True)) for path in _configs(repository)
    ]
    ensembles = [ensemble for ensemble in found if ensemble]
    public = {ensemble.name: ensemble for ensemble in ensembles if ensemble.public}
    if model not in public:
        raise ValueError(f"{repository} has no public model {model}; it has {', '.join(public) or 'none'}")
    engine = public[model].engine
    tensor = next((e for e in ensembles if e.engine == engine and e.preprocess is None), None)
    return {"image": public[model], **({"tensor": tensor} if tensor else {})}


def _configs(repository: Path) -> list[Path]:
    return sorted(repository.glob("*/config.pbtxt"))


def read(path: Path) -> Any:
    """Return a model's configuration; the folder gives the name if the file does not."""
    config = text_format.Parse(path.read_text(), ModelConfig())
    config.name = config.name or path.parent.name
    return config


def copy_repository(
    repository: Path, target: Path, ensembles: Mapping[str, Ensemble], outputs: Sequence[str], *, batching: bool
) -> None:
    """Copy what these ensembles need; the ensembles declare some outputs only.

    Args:
        repository: what to copy; weights are linked.
        target: the new folder.
        ensembles: the ensembles to copy, with their steps.
        outputs: names of the outputs to declare.
        batching: whether the engine has a dynamic batcher.
    """
    for ensemble in ensembles.values():
        config = read(repository / ensemble.name / "config.pbtxt")
        keep_outputs(config, outputs)
        write(config, target / ensemble.name / "config.pbtxt")
        (target / ensemble.name / "1").mkdir()
        for step in {step.model_name for step in config.ensemble_scheduling.step}:
            if not (target / step).exists():
                shutil.copytree(repository / step, target / step, copy_function=os.symlink)
        _set_batching(target / str(ensemble.engine), on=batching)


def _set_batching(engine: Path, *, on: bool) -> None:
    for path in [engine / "config.pbtxt", *engine.glob("configs/*.pbtxt")]:
        config = read(path)
        if on:
            config.dynamic_batching.SetInParent()
        else:
            config.ClearField("dynamic_batching")
        path.unlink()  # a link
        write(config, path)


def write(config: Any, path: Path) -> None:
    """Write a model's configuration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_format.MessageToString(config))


def keep_outputs(config: Any, names: Sequence[str]) -> None:
    """Keep some outputs of an ensemble, the steps that they need, and the tensors that somebody then reads."""
    wanted, kept = set(names), []
    while more := [s for s in config.ensemble_scheduling.step if s not in kept and wanted & set(s.output_map.values())]:
        kept += more
        wanted.update(tensor for step in more for tensor in step.input_map.values())
    for step in kept:
        for key in [key for key, tensor in step.output_map.items() if tensor not in wanted]:
            del step.output_map[key]
    for field, values in (
        (config.ensemble_scheduling.step, kept),
        (config.input, [tensor for tensor in config.input if tensor.name in wanted]),
        (config.output, [tensor for tensor in config.output if tensor.name in names]),
    ):
        del field[:]
        field.extend(values)


def check(target: Target, requests: Mapping[str, Arrays]) -> None:
    """Compare the answers of the ensembles for one picture.

    Args:
        target: the server.
        requests: inputs by name of the ensemble.

    Raises:
        ValueError: they differ; a time for them would mean nothing.
    """
    with tritonclient.grpc.InferenceServerClient(target.grpc_url) as client:
        first, *others = (_answer(client, model, arrays) for model, arrays in requests.items())
    for answer in others:
        if different := [name for name, array in answer.items() if not _equal(array, first[name])]:
            raise ValueError(f"the ensembles give different {', '.join(different)}")


def _answer(client: Any, model: str, arrays: Arrays) -> Arrays:
    inputs = []
    for name, array in arrays.items():
        tensor = tritonclient.grpc.InferInput(name, [1, *array.shape], np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array[None]))
    answer = client.infer(model, inputs)
    return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def _equal(one: Any, other: Any) -> bool:
    if one.dtype.kind == "f":
        return bool(one.shape == other.shape and np.allclose(one, other, atol=1e-4))
    return bool(np.array_equal(one, other))


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return images a second by what a user chooses."""

    def chosen(**values: Any) -> list[Row]:
        return [row for row in rows if all(row[name] == value for name, value in values.items())]

    found = [
        pivot(
            chosen(takes="image", batch=1, batching="on"), name="transports", lines="outputs", columns="transport",
            value="images_s", caption="Images a second by outputs and transport: one image a request.",
        ),
        pivot(
            chosen(takes="image", transport="grpc", batching="on"), name="batches", lines="outputs", columns="batch",
            value="images_s", caption="Images a second by outputs and images in a request, over gRPC.",
        ),
        pivot(
            chosen(takes="image", outputs="structured", transport="grpc"), name="batching", lines="batching",
            columns="batch", value="images_s",
            caption="Images a second with and without the engine's dynamic batcher, by images in a request, over gRPC.",
        ),
        pivot(
            chosen(transport="grpc", batch=1, batching="on"), name="ensembles", lines="outputs", columns="takes",
            value="images_s", caption="Images a second of the two ensembles: encoded images, or the engine's input.",
        ),
    ]  # fmt: skip
    return [table for table in found if table.lines]


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw images a second by outputs and transport, for one and for the most images in a request."""
    largest = max(row["batch"] for row in rows)
    for axes, batch in zip(figure.subplots(1, 2, sharey=True), (1, largest), strict=True):
        for place, transport in enumerate(TRANSPORTS):
            bars = {
                row["outputs"]: row["images_s"]
                for row in rows
                if (row["takes"], row["batching"], row["transport"], row["batch"]) == ("image", "on", transport, batch)
            }
            axes.bar(np.arange(len(bars)) + place / 4, list(bars.values()), 0.25, label=transport)
            axes.set_xticks(np.arange(len(bars)) + 1 / 4, list(bars))
        axes.set(title=f"{batch} image{'s' * (batch > 1)} a request")
    figure.axes[0].set_ylabel("images a second")
    figure.axes[0].legend()
