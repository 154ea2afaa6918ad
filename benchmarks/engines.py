"""The engine alone, in this process: ONNX Runtime and OpenVINO, each with several settings, on two graphs.

Nothing of the service takes part, so this is the most that a server on these cores can reach.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from m2f.preprocess import Preprocessing
from m2f_backend.cores import usable_cores
from m2f_backend.openvino_network import openvino

from .frame import Part, Row, Table, UnavailableError, pivot

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS = ("cls_logits", "mask_logits")
LARGEST_MEAN = 1e-4  # mean difference of a mask logit from ONNX Runtime's, in float32

EMBEDDED, R50 = "embedded, 256 x 256", "R50, 512 x 512"
IMAGES = {EMBEDDED: 60, R50: 4}  # in a measurement
ROUNDS = {EMBEDDED: 2, R50: 1}


@dataclass(frozen=True)
class Setting:
    """A library and how it is used.

    Attributes:
        library: `onnxruntime` or `openvino`.
        fixed: whether the shapes are fixed when the graph is loaded.
        traced: whether the graph is as PyTorch and onnxslim make it, without the exporter's rewriting.
        options: more options of the library.
    """

    library: str
    fixed: bool = True
    traced: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


ENGINES = {
    "ONNX Runtime, graph as traced": Setting("onnxruntime", fixed=False, traced=True),
    "ONNX Runtime": Setting("onnxruntime", fixed=False),
    "ONNX Runtime, spinning": Setting("onnxruntime", fixed=False, options={"spin": True}),
    "ONNX Runtime, fixed shape": Setting("onnxruntime"),
    "OpenVINO, graph as traced": Setting("openvino", traced=True),
    "OpenVINO": Setting("openvino"),
    "OpenVINO, free shape": Setting("openvino", fixed=False),
    "OpenVINO, bfloat16": Setting("openvino", options={"INFERENCE_PRECISION_HINT": "bf16"}),
}
ONE, TOGETHER, EACH = "one thread", "all cores for one image", "one image a core"
WAYS = (ONE, TOGETHER, EACH)
QUICK = ("ONNX Runtime", "OpenVINO")

Pixels = npt.NDArray[np.uint8]
Logits = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Graph:
    """A graph on disk, the same graph as it was traced, an input of them, and ONNX Runtime's answer."""

    path: Path
    traced: Path
    pixels: Pixels  # [1, H, W, 3]
    expected: Logits


def part(*, quick: bool) -> Part:
    """Return the cells of both graphs; `quick`: of the embedded model alone, and fewer engines."""
    engines = QUICK if quick else tuple(ENGINES)
    cells = [
        {"model": model, "round": number, "way": way, "engine": engine}
        for model in ((EMBEDDED,) if quick else (EMBEDDED, R50))
        for number in range(1 if quick else ROUNDS[model])
        for way in WAYS
        for engine in engines
    ]
    return Part(
        name="engines",
        title="The engine alone",
        about=(
            f"{usable_cores()} cores, no server. `{TOGETHER}` is one caller, `{EACH}` as many callers as cores. "
            "The R50 has random weights. Answers in float32 equal ONNX Runtime's."
        ),
        cells=cells,
        measure=measure,
        shared=("model",),
        stage=partial(graph, names=engines),
        limit_s=300,
        tables=tables,
    )


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return images a second and processor time of each graph, and how exact the answers are."""
    made = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        name = model.partition(",")[0].lower()
        for value, what in (("images_s", "images a second"), ("cpu_ms", "processor milliseconds of an image")):
            caption = f"{model}: {what}"
            made.append(
                pivot(mine, name=f"{name}_{value}", lines="engine", columns="way", value=value, caption=caption)
            )
        first = {row["engine"]: row for row in mine}
        exact = [[engine, row["mask_max"], row["mask_mean"], row["compile_s"]] for engine, row in first.items()]
        columns = ("engine", "mask logits, largest difference", "mean difference", "seconds to load")
        made.append(Table(f"{name}_exact", columns, exact, f"{model}: difference from ONNX Runtime with one thread"))
    return made


@contextlib.contextmanager
def graph(model: str, names: Sequence[str]) -> Iterator[Graph]:
    """Provide the graphs of a model; what is not in this repository is exported into a temporary folder."""
    side = 256 if model == EMBEDDED else 512
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path, traced = folder / "model.onnx", folder / "traced.onnx"
        if model == EMBEDDED:
            path = ROOT / "model_repository/mask2former_engine/1/model.onnx"
        if model != EMBEDDED or any(ENGINES[name].traced for name in names):
            export(model, folder, path, traced, side=side)
        stretched = Preprocessing(scale=(side, side), keep_ratio=False, input_size=(side, side))
        pixels, _, _ = stretched([(ROOT / "examples/images/scene_1.jpg").read_bytes()])
        yield Graph(path, traced, pixels, on_onnx_runtime(path, pixels, threads=1, fixed=False)())


def export(model: str, folder: Path, path: Path, traced: Path, *, side: int) -> None:
    """Export a model with and without the exporter's rewriting: the embedded one, or the R50 with random weights.

    Raises:
        UnavailableError: the packages of the exporter are not installed.
    """
    try:
        import torch  # noqa: PLC0415

        from m2f_export import graph as exporter  # noqa: PLC0415
        from m2f_export.sources import mmdetection  # noqa: PLC0415
        from m2f_export.sources.mmdet_config import describe, read_config  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(f"this graph is made by the exporter: pip install 'm2f[export]' ({error})") from error
    if model == EMBEDDED:
        shapes = ROOT / "examples/shapes"
        source = mmdetection.load_mmdet(shapes / "mask2former_shapes.py", shapes / "mask2former_shapes.pth")
    else:
        from .postprocess.graphs import R50 as CONFIG  # noqa: PLC0415

        config = folder / "r50.py"
        config.write_text(CONFIG)
        settings = read_config(config)
        torch.manual_seed(0)
        network = mmdetection.Network(_random_weights(mmdetection.build_model(settings, config)), takes_bgr=False)
        source = mmdetection.as_source(describe(settings, config), config, network.eval())
    source = exporter.with_input(source, layout="uint8_hwc", size=(side, side))
    if not path.is_file():
        exporter.export_onnx(source, path)
    with mock.patch.object(exporter, "rewritten", lambda model: model):
        exporter.export_onnx(source, traced)


def _random_weights(model: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        logging.disable(logging.WARNING)  # mmengine lists how every weight was initialised
        model.init_weights()
        logging.disable(logging.NOTSET)
    return model


def measure(stage: Graph, *, model: str, round: int, way: str, engine: str) -> list[Row]:  # noqa: ARG001
    """Check the answer of an engine, then time it."""
    setting = ENGINES[engine]
    path = stage.traced if setting.traced else stage.path
    cores = usable_cores()
    threads, callers = {ONE: (1, 1), TOGETHER: (cores, 1), EACH: (cores, cores)}[way]
    begun = time.perf_counter()
    options = {"fixed": setting.fixed, **setting.options}
    if setting.library == "openvino":
        run = on_openvino(path, stage.pixels, threads=threads, streams=callers, **options)
    else:  # one session that each caller runs with its own thread
        run = on_onnx_runtime(path, stage.pixels, threads=threads // callers, **options)
    compile_s = time.perf_counter() - begun
    differences = [np.abs(mine - theirs) for mine, theirs in zip(run(), stage.expected, strict=True)]
    largest, mean = float(differences[1].max()), float(differences[1].mean())
    if "bfloat16" not in engine and mean > LARGEST_MEAN:
        raise ValueError(f"mask logits differ by {mean:.1e} on average from ONNX Runtime's, allowed {LARGEST_MEAN}")
    wall, cpu = timed(run, IMAGES[model], callers)
    return [
        {
            "images_s": 1 / wall, "cpu_ms": 1e3 * cpu, "compile_s": compile_s, "mask_max": largest, "mask_mean": mean,
            "threads": threads, "streams": callers,
        }
    ]  # fmt: skip


def timed(run: Callable[[], object], images: int, callers: int) -> tuple[float, float]:
    """Return the seconds on the clock and of the processor that an image takes."""

    def work(count: int) -> None:
        for _ in range(count):
            run()

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(work, [2] * callers))  # each thread makes its memory
        wall, cpu = time.perf_counter(), time.process_time()
        list(pool.map(work, [images // callers] * callers))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done = images // callers * callers
    return wall / done, cpu / done


def on_onnx_runtime(
    path: Path, pixels: Pixels, *, threads: int, fixed: bool, spin: bool = False
) -> Callable[[], Logits]:
    """Load a graph into ONNX Runtime; return a function that computes the pixels, for any number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    if fixed:
        options.add_free_dimension_override_by_name("batch", 1)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(list(OUTPUTS), {"input": pixels})  # type: ignore[no-any-return]


def on_openvino(
    path: Path, pixels: Pixels, *, threads: int, streams: int, fixed: bool, **options: Any
) -> Callable[[], Logits]:
    """Load a graph into OpenVINO; return a function that computes the pixels, for as many threads as streams."""
    core = openvino.Core()
    graph = core.read_model(path)
    if fixed:
        graph.reshape({"input": list(pixels.shape)})
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams}
    compiled = core.compile_model(graph, "CPU", exact | options)

    of_thread = threading.local()

    def run() -> Logits:
        if not hasattr(of_thread, "request"):
            of_thread.request = compiled.create_infer_request()
        results = of_thread.request.infer({"input": pixels}, share_inputs=True)
        return [results[name] for name in OUTPUTS]

    return run
