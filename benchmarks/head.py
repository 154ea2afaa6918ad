"""The head in the graph against the engine with the Python postprocess: time, bytes of a response.

    python benchmarks/head.py [--repeat 9] [--threads 0] [--json]

Both run in this process on ONNX Runtime, no server in between. They must give the same instances before they are timed.
On a busy machine read `cpu ms`, processor time, with `--threads 1`: idle threads of ONNX Runtime spin.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from m2f.batch import dense_masks, stack_instances
from m2f.logits import ImageLogits
from m2f.postprocess import postprocess
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_export.head import LOGITS, OUTPUTS, InstanceHead, attach_head

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "model_repository/mask2former_engine/1/model.onnx"
IMAGE = ROOT / "examples/images/scene_1.jpg"
SETTINGS = Settings(score_threshold=0.5)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One engine and one image.

    Attributes:
        name: for people.
        engine: graph with the two logits.
        inputs: of the engine.
        sizes: `img_shape` and `ori_shape` int32 [1, 2].
    """

    name: str
    engine: onnx.ModelProto
    inputs: Arrays
    sizes: Arrays


@dataclass(frozen=True)
class Row:
    """One way of one case: median wall and processor time of an image, bytes of its outputs."""

    case: str
    way: str
    instances: int
    median_ms: float
    cpu_ms: float
    bytes: int


def embedded() -> Case:
    """Return the embedded model on an example image."""
    preprocessing = Preprocessing(scale=(256, 256), input_size=(256, 256), pad_value=(124, 116, 104))
    batch, img_shape, ori_shape = preprocessing([IMAGE.read_bytes()])
    height, width = ori_shape[0]
    name = f"embedded model, 256x256 -> {height}x{width}"
    return Case(name, onnx.load(EMBEDDED), {"input": batch}, {"img_shape": img_shape, "ori_shape": ori_shape})


def synthetic(*, queries: int = 100, classes: int = 80, objects: int = 15) -> Case:
    """Return logits alone, 200x336 at 800x1333: discs on a noisy background, the first of them confident."""
    rng, cells = np.random.default_rng(0), (200, 336)
    cls_logits = rng.normal(0, 1, (1, queries, classes + 1)).astype(np.float32)
    cls_logits[..., -1] += 12
    cls_logits[0, np.arange(objects), rng.integers(0, classes, objects)] += 24
    y, x = np.mgrid[: cells[0], : cells[1]]
    centres, radii = rng.uniform(0, 1, (queries, 2)) * cells, rng.uniform(8, 50, queries)
    distance = np.hypot(y - centres[:, :1, None], x - centres[:, 1:, None])
    mask_logits = (radii[:, None, None] - distance + rng.normal(0, 0.5, (queries, *cells))).astype(np.float32)[None]
    inputs = dict(zip(("cls_logits_in", "mask_logits_in"), (cls_logits, mask_logits), strict=True))
    size = np.array([[800, 1333]], np.int32)
    name = f"logits alone, {queries} x 200x336 -> 800x1333"
    return Case(name, _hand_on(inputs), inputs, {"img_shape": size, "ori_shape": size})


def _hand_on(inputs: Arrays) -> onnx.ModelProto:
    """Return an engine that makes its inputs its outputs."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [logits]) for name, logits in zip(inputs, LOGITS, strict=True)],
        "logits",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in inputs.items()],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape)
            for n, a in zip(LOGITS, inputs.values(), strict=True)
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ways(case: Case, *, threads: int) -> dict[str, Callable[[], Arrays]]:
    """Return each way as a function that answers for the case's image."""
    engine = _session(case.engine, threads)
    shapes = {name: tuple(size[0].tolist()) for name, size in case.sizes.items()}

    def structured() -> Arrays:
        cls_logits, mask_logits = engine.run(list(LOGITS), case.inputs)
        return stack_instances([postprocess(ImageLogits(cls_logits[0], mask_logits[0], **shapes), SETTINGS)])

    def dense() -> Arrays:
        outputs = structured()
        return {**outputs, "masks": dense_masks(outputs["rle"], outputs["size"])}

    def head(masks: str) -> Callable[[], Arrays]:
        module = InstanceHead(top_k=SETTINGS.pre_top_k, score_threshold=SETTINGS.score_threshold, masks=masks)
        session = _session(attach_head(case.engine, module), threads)
        inputs = {**case.inputs, **case.sizes}
        return lambda: dict(zip(OUTPUTS, session.run(list(OUTPUTS), inputs), strict=True))

    return {
        "engine + postprocess (RLE)": structured,
        "engine + postprocess + dense masks": dense,
        "head, masks full": head("full"),
        "head, masks stride4": head("stride4"),
        "engine alone": lambda: dict(zip(LOGITS, engine.run(list(LOGITS), case.inputs), strict=True)),
    }


def _session(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def check(got: Arrays, want: Arrays) -> None:
    """Hold one way's answer against the Python postprocess's with dense masks.

    Raises:
        SystemExit: other instances; a time for them would mean nothing.
    """
    count = int(want["num_instances"][0, 0])
    same = int(got["num_instances"][0, 0]) == count
    same = same and np.allclose(got["scores"][0, :count], want["scores"][0], atol=1e-4)
    same = same and np.array_equal(got["labels"][0, :count], want["labels"][0])
    if same and "masks" in got and got["masks"].dtype == np.uint8:  # a logit may round to the other side of 0
        same = np.count_nonzero(got["masks"][0, :count] != want["masks"][0]) <= 1e-5 * want["masks"].size
    if not same:
        raise SystemExit("benchmark: the ways do not give the same instances")


def measure(case: Case, *, repeat: int, threads: int) -> list[Row]:
    """Check every way, then time them in turn, so that a busy moment of the machine hits all alike."""
    functions = ways(case, threads=threads)
    answers = {way: function() for way, function in functions.items()}
    want = answers["engine + postprocess + dense masks"]
    for answer in answers.values():
        if "scores" in answer:
            check(answer, want)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in functions}
    for _ in range(repeat):
        for way, function in functions.items():
            begin = time.perf_counter(), time.process_time()
            function()
            times[way].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    count = int(want["num_instances"][0, 0])
    medians = {
        way: [statistics.median(kind) * 1e3 for kind in zip(*pairs, strict=True)] for way, pairs in times.items()
    }
    return [Row(case.name, way, count, *medians[way], _bytes(answers[way])) for way in functions]


def _bytes(outputs: Arrays) -> int:
    """Bytes of the outputs in a response; an element of a BYTES tensor carries its length in four more."""
    objects = sum(len(data) + 4 for a in outputs.values() if a.dtype == object for data in a.flat)
    return objects + sum(array.nbytes for array in outputs.values() if array.dtype != object)


def table(rows: Sequence[Row]) -> str:
    """Format the rows for people; ratios are of processor time, to the first way of each case."""
    lines = [f"{'':<36}{'median ms':>10}{'cpu ms':>9}{'ratio':>8}{'bytes':>13}"]
    first: dict[str, Row] = {}
    for row in rows:
        if row.case not in first:
            first[row.case] = row
            lines.append(f"{row.case}, {row.instances} instances")
        ratio = row.cpu_ms / first[row.case].cpu_ms
        lines.append(f"  {row.way:<34}{row.median_ms:>10.1f}{row.cpu_ms:>9.1f}{ratio:>8.2f}{row.bytes:>13,}")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what a figure is worth nothing without."""
    names = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=9, help="times a way is run (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: one a core")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    before = machine()
    cases = (embedded(), synthetic())
    rows = [row for case in cases for row in measure(case, repeat=arguments.repeat, threads=arguments.threads)]
    if arguments.json:
        print(json.dumps({**before, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print(", ".join(f"{key} {value}" for key, value in before.items()), table(rows), sep="\n")


if __name__ == "__main__":
    main()
