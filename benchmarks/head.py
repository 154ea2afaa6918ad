"""The head in the graph, or behind it: time and bytes of an answer, by size, number of instances and engine.

`m2f export --head` puts softmax, top-k, mask scores and masks into the graph. Everything runs in this process with one
thread, without a server. All ways must find the same instances before they are timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import openvino
from onnx import TensorProto, helper

from m2f.batch import dense_masks, stack_instances
from m2f.logits import ImageLogits
from m2f.postprocess import postprocess
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_export.head import LOGITS, OUTPUTS, InstanceHead, attach_head

from .frame import Part, Row, Table
from .postprocess.scenes import synthetic
from .serving import IMAGES, REPOSITORY

EMBEDDED = "embedded model with its engine, 256 x 256"
SIZES = {"480 x 640": (480, 640), "800 x 1333": (800, 1333)}
SETTINGS = Settings(score_threshold=0.5)
RLE, DENSE, FULL, STRIDE4 = "postprocess, RLE", "postprocess, dense masks", "head, full masks", "head, stride 4"

Arrays = dict[str, npt.NDArray[Any]]
Network = Callable[[Arrays], Arrays]
Load = Callable[[onnx.ModelProto, Arrays], Network]


@dataclass(frozen=True)
class Case:
    """A graph and the arrays of one image.

    Attributes:
        graph: an engine that gives the two logits.
        inputs: of the engine.
        sizes: `img_shape` and `ori_shape` int32 [1, 2].
    """

    graph: onnx.ModelProto
    inputs: Arrays
    sizes: Arrays


def part(*, quick: bool) -> Part:
    """Return a cell for each engine, size and number of instances."""
    engines = ["onnxruntime"] if quick else ["onnxruntime", "openvino"]
    sizes, instances = (["800 x 1333"], [15]) if quick else (list(SIZES), [1, 15, 100])
    cells = [
        {"engine": engine, "size": size, "objects": count}
        for engine in engines
        for size in sizes
        for count in instances
    ]
    cells += [{"engine": engine, "size": EMBEDDED, "objects": None} for engine in engines]
    return Part(
        name="head",
        title="The head in the graph, or behind it",
        about=(
            "Logits of 100 queries with masks of 200 x 336, resized to the size of the original image, by `m2f export "
            "--head` in the graph and by the Python post-processing behind it; one thread."
        ),
        cells=cells,
        measure=partial(measured, seconds=0.3 if quick else 0.6),
        tables=tables,
        draw=draw,
    )


def measured(_stage: None, *, engine: str, size: str, objects: int | None, seconds: float) -> list[Row]:
    """Compare all ways on one case, then time them in turn."""
    case = embedded() if objects is None else drawn(SIZES[size], objects)
    functions = ways(case, load=NETWORKS[engine])
    answers = {way: function() for way, function in functions.items()}
    for answer in answers.values():
        check(answer, answers[DENSE])
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in functions}
    end = time.monotonic() + seconds * len(functions)
    while len(times[RLE]) < 2 or time.monotonic() < end:
        for way, function in functions.items():
            begin = time.perf_counter(), time.process_time()
            function()
            times[way].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    count = int(answers[DENSE]["num_instances"][0, 0])
    rows: list[Row] = []
    for way, pairs in times.items():
        wall_ms, cpu_ms = (statistics.median(kind) * 1e3 for kind in zip(*pairs, strict=True))
        times_as_long = cpu_ms / rows[0]["cpu_ms"] if rows else 1.0
        figures = {"wall_ms": wall_ms, "cpu_ms": cpu_ms, "times_as_long": times_as_long, "bytes": size_of(answers[way])}
        rows.append({"way": way, "instances": count, **figures})
    return rows


def embedded() -> Case:
    """Return the embedded model on an example image."""
    preprocessing = Preprocessing(scale=(256, 256), input_size=(256, 256), pad_value=(124, 116, 104))
    batch, img_shape, ori_shape = preprocessing([IMAGES[0].read_bytes()])
    graph = onnx.load(REPOSITORY / "mask2former_engine/1/model.onnx")
    return Case(graph, {"input": batch}, {"img_shape": img_shape, "ori_shape": ori_shape})


def drawn(output: tuple[int, int], objects: int) -> Case:
    """Return the logits of a drawn scene alone."""
    scene = synthetic(objects, output)
    inputs = {f"{name}_in": getattr(scene, name)[None] for name in LOGITS}
    sizes = {name: np.array([size], np.int32) for name, size in scene.shapes.items()}
    return Case(_hand_on(inputs), inputs, sizes)


def _hand_on(inputs: Arrays) -> onnx.ModelProto:
    """Return an engine that makes its inputs its outputs."""
    nodes = [helper.make_node("Identity", [name], [logits]) for name, logits in zip(inputs, LOGITS, strict=True)]
    takes, makes = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, inputs[f"{logits}_in"].shape) for name, logits in names]
        for names in (zip(inputs, LOGITS, strict=True), zip(LOGITS, LOGITS, strict=True))
    )
    graph = helper.make_graph(nodes, "logits", takes, makes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _onnxruntime(graph: onnx.ModelProto, _inputs: Arrays) -> Network:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _openvino(graph: onnx.ModelProto, inputs: Arrays) -> Network:
    core = openvino.Core()
    model = core.read_model(graph.SerializeToString())
    model.reshape({name: array.shape for name, array in inputs.items()})
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(inputs: Arrays) -> Arrays:
        outputs = request.infer(inputs, share_inputs=True, share_outputs=True)
        return {name: array for output, array in outputs.items() for name in output.names}

    return run


NETWORKS: Mapping[str, Load] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def ways(case: Case, *, load: Load) -> dict[str, Callable[[], Arrays]]:
    """Return each way as a function that answers for the case's image."""
    engine = load(case.graph, case.inputs)
    shapes = {name: tuple(size[0].tolist()) for name, size in case.sizes.items()}

    def structured() -> Arrays:
        logits = engine(case.inputs)
        return stack_instances([postprocess(ImageLogits(*(logits[name][0] for name in LOGITS), **shapes), SETTINGS)])

    def dense() -> Arrays:
        outputs = structured()
        return {**outputs, "masks": dense_masks(outputs["rle"], outputs["size"])}

    def head(masks: str) -> Callable[[], Arrays]:
        module = InstanceHead(top_k=SETTINGS.pre_top_k, score_threshold=SETTINGS.score_threshold, masks=masks)
        inputs = {**case.inputs, **case.sizes}
        network = load(attach_head(case.graph, module), inputs)

        def answer() -> Arrays:
            outputs = network(inputs)
            return {name: outputs[name] for name in OUTPUTS}

        return answer

    return {RLE: structured, DENSE: dense, FULL: head("full"), STRIDE4: head("stride4")}


def check(got: Arrays, want: Arrays) -> None:
    """Compare an answer with that of the Python post-processing with dense masks.

    Raises:
        ValueError: other instances.
    """
    count = int(want["num_instances"][0, 0])
    same = int(got["num_instances"][0, 0]) == count
    # a graph's mean over the pixels of a large mask rounds: 1.5e-4 on OpenVINO
    same = same and np.allclose(got["scores"][0, :count], want["scores"][0], rtol=0, atol=5e-4)
    same = same and np.array_equal(got["labels"][0, :count], want["labels"][0])
    if same and got.get("masks", want["masks"]).dtype == np.uint8:  # stride 4 gives logits
        masks = got.get("masks", want["masks"])[0, :count]
        same = np.count_nonzero(masks != want["masks"][0]) <= 1e-5 * want["masks"].size  # a logit may round to 0
    if not same:
        raise ValueError("the ways do not give the same instances")


def size_of(outputs: Arrays) -> int:
    """Return the bytes of the outputs in a response; an element of a BYTES tensor carries its length in four more."""
    objects = sum(len(data) + 4 for array in outputs.values() if array.dtype == object for data in array.flat)
    return objects + sum(array.nbytes for array in outputs.values() if array.dtype != object)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return processor time by size, instances and engine, and the bytes of an answer."""
    names = list(dict.fromkeys(row["way"] for row in rows))
    lines: dict[tuple[Any, ...], list[Any]] = {}
    sizes: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        lines.setdefault((row["size"], row["instances"], row["engine"]), []).append(row["cpu_ms"])
        sizes.setdefault((row["size"], row["instances"]), []).append(row["bytes"])
    return [
        Table("times", ["image", "instances", "engine", *names], [[*key, *times] for key, times in lines.items()],
              "Processor milliseconds of an image:"),
        Table("bytes", ["image", "instances", *names], [[*key, *some[: len(names)]] for key, some in sizes.items()],
              "Bytes of an answer:"),
    ]  # fmt: skip


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the time of each way over the number of instances, for each size, on ONNX Runtime."""
    shown = [row for row in rows if row["objects"] is not None and row["engine"] == "onnxruntime"]
    sizes = list(dict.fromkeys(row["size"] for row in shown))
    for axes, size in zip(figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes, strict=True):
        for way in dict.fromkeys(row["way"] for row in shown):
            points = [(row["instances"], row["cpu_ms"]) for row in shown if (row["size"], row["way"]) == (size, way)]
            axes.plot(*zip(*points, strict=True), "o-", label=way)
        axes.set(title=size, xlabel="instances", yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("ms, one thread")
    figure.axes[0].legend(fontsize=8)
