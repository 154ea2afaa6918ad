"""A stand-in for a fast engine: it sleeps as long as a GPU would compute, and answers with the logits of a drawn scene.

What is measured around it is the pipeline: decoding, copies between the steps, post-processing. It is a Python model,
so Triton copies its answer once more than that of a TensorRT engine.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from benchmarks.postprocess.scenes import ROOT, Case, synthetic
from benchmarks.shared_memory import large_picture
from m2f.contract import CANARY_ID, PUBLIC_MODEL, model_name
from m2f.model_facts import ModelFacts
from m2f.preprocess import Preprocessing
from m2f_export.repository_writer import configure, copy_template, set_logits_types

DTYPES = ("FP32", "FP16")
_ENGINE = model_name(PUBLIC_MODEL, "engine")
_LOGITS = "logits.npz"
_ANSWERED = "answered.log"

# The answers are copied into Triton's shared memory once, at the first request: a GPU writes there without a processor.
# Instances share one GPU: each takes the next free span of its time, which stands in a file.
_MODEL = f'''"""Sleeps, then answers with the same logits."""

import fcntl
import json
import pathlib
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.seconds = float(parameters["milliseconds"]["string_value"]) / 1e3
        folder = pathlib.Path(args["model_repository"], args["model_version"])
        self.logits, self.answers = dict(np.load(folder / "{_LOGITS}")), {{}}
        self.free_at = (folder / "free_at").open("r+")
        self.answered = (folder / "{_ANSWERED}").open("a", buffering=1)

    def execute(self, requests):
        sizes = [pb_utils.get_input_tensor_by_name(request, "input").shape()[0] for request in requests]
        done_at = self.reserve(sum(sizes) * self.seconds)
        time.sleep(max(0.0, done_at - time.perf_counter()))
        now = time.monotonic()
        self.answered.write("".join(f"{{now:.6f}} {{request.request_id()}}\\n" for request in requests))
        return [pb_utils.InferenceResponse(self.answer(size)) for size in sizes]

    def reserve(self, seconds):
        fcntl.flock(self.free_at, fcntl.LOCK_EX)
        self.free_at.seek(0)
        done_at = max(time.perf_counter(), float(self.free_at.read())) + seconds
        self.free_at.seek(0)
        self.free_at.write(f"{{done_at:020.9f}}")
        self.free_at.flush()
        fcntl.flock(self.free_at, fcntl.LOCK_UN)
        return done_at

    def answer(self, size):
        if size not in self.answers:
            arrays = {{name: np.repeat(array[None], size, axis=0) for name, array in self.logits.items()}}
            self.answers[size] = [pb_utils.Tensor(name, array) for name, array in arrays.items()]
        return self.answers[size]
'''


@dataclass(frozen=True, kw_only=True)
class Work:
    """A picture, and what the network would say about it.

    Attributes:
        name: for people.
        picture: encoded image.
        scene: the logits; their sizes are those that preprocessing makes of the picture.
        preprocessing: of the model.
    """

    name: str
    picture: bytes
    scene: Case
    preprocessing: Preprocessing


def production(instances: int = 15) -> Work:
    """Return COCO's size: a picture of 800 x 1333, 100 queries x 80 classes, masks of 200 x 336."""
    return Work(
        name=f"800 x 1344, 100 queries, {instances} instances",
        picture=large_picture(),
        scene=synthetic(instances, (800, 1333)),
        preprocessing=Preprocessing(scale=(1333, 800)),
    )


def embedded(instances: int = 4) -> Work:
    """Return the embedded model's size: an example scene, 20 queries x 5 classes, masks of 64 x 64."""
    picture = (ROOT / "examples/images/scene_1.jpg").read_bytes()
    preprocessing = Preprocessing(scale=(256, 256), input_size=(256, 256), pad_value=(124, 116, 104))
    _, img_shape, ori_shape = preprocessing([picture])
    large = synthetic(instances, (256, 256), queries=20, classes=5)
    rows, columns = (np.linspace(0, side - 1, 64).astype(int) for side in large.mask_logits.shape[1:])
    scene = Case(
        name=large.name,
        cls_logits=large.cls_logits,
        mask_logits=np.ascontiguousarray(large.mask_logits[:, rows][:, :, columns]),
        img_shape=tuple(img_shape[0].tolist()),
        ori_shape=tuple(ori_shape[0].tolist()),
        settings=large.settings,
    )
    return Work(
        name=f"256 x 256, 20 queries, {instances} instances", picture=picture, scene=scene, preprocessing=preprocessing
    )


@contextmanager
def sleeping_repository(work: Work, *, milliseconds: float = 0.0, dtype: str = "FP32") -> Iterator[Path]:
    """Make a model repository whose engine sleeps, for the length of the `with` block.

    Args:
        work: what the engine answers, and the preprocessing.
        milliseconds: how long the engine sleeps for each image; several requests wait for one another.
        dtype: datatype of the engine's mask logits, `FP32` or `FP16`.
    """
    with TemporaryDirectory(prefix="m2f_benchmark_") as folder:
        repository = Path(folder)
        copy_template(repository, PUBLIC_MODEL)
        configure(
            repository,
            PUBLIC_MODEL,
            SimpleNamespace(preprocessing=work.preprocessing, facts=ModelFacts(), settings=work.scene.settings),
        )
        set_logits_types(repository, PUBLIC_MODEL, {"mask_logits": dtype})
        _write_engine(repository / _ENGINE, work.scene, milliseconds, dtype)
        yield repository


def answered(repository: Path) -> list[tuple[float, str]]:
    """Return when the engine of a repository answered, by `time.monotonic`, and the ids of the requests.

    Args:
        repository: folder that `sleeping_repository` made. The answers to canaries are left out.
    """
    lines = (repository / _ENGINE / "1" / _ANSWERED).read_text().splitlines()
    pairs = (line.split(" ", maxsplit=1) for line in lines)
    return [(float(when), identity) for when, identity in pairs if identity != CANARY_ID]


def _write_engine(folder: Path, scene: Case, milliseconds: float, dtype: str) -> None:
    path = folder / "config.pbtxt"
    config = text_format.Parse(path.read_text(), ModelConfig())
    config.ClearField("platform")
    config.ClearField("model_warmup")
    config.backend = "python"
    config.instance_group[0].kind = config.instance_group[0].KIND_CPU
    config.parameters["milliseconds"].string_value = str(milliseconds)
    path.write_text(text_format.MessageToString(config))
    shutil.rmtree(folder / "configs")
    kind = {"FP32": np.float32, "FP16": np.float16}[dtype]
    np.savez(folder / "1" / _LOGITS, cls_logits=scene.cls_logits, mask_logits=scene.mask_logits.astype(kind))
    (folder / "1/free_at").write_text("0")
    (folder / "1" / _ANSWERED).touch()
    (folder / "1/model.py").write_text(_MODEL)
