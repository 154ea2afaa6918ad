"""The measurements of `make gpu-check`: each is a function that returns what it found, as JSON has it."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from m2f import agreement
from m2f.agreement import CONFIDENT, Found
from m2f.contract import STRUCTURED_OUTPUTS

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "model_repository"
ANSWERS = Path(__file__).with_name("gpu_answers.json")  # of the embedded model with `--config-name cpu`
PICTURES = sorted(path for path in (ROOT / "examples/images").iterdir() if path.suffix in (".jpg", ".png", ".webp"))
FREE_SIDES = {1: 800, 2: 1344, 3: 1344}  # by axis, of a graph that leaves its size free
OUTPUTS = ["cls_logits", "mask_logits"]
BATCHES = (1, 8)
CLIENTS = (1, 8, 16)


def machine():
    """The card, the driver, the processor and the versions of what computes."""
    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    try:
        card = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        card = f"none ({error})"
    versions = {}
    for package in ("m2f", "onnxruntime-gpu", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13-libs", "torch", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    python, cores = platform.python_version(), len(os.sched_getaffinity(0))
    return {"card": card, "cores": cores, "python": python, "versions": versions, "executable": sys.executable}


def median_ms(call, *, seconds=2.0, at_most=200):
    """The median time of a call in milliseconds, after three calls that do not count."""
    for _ in range(3):
        call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < at_most):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return round(statistics.median(times), 3)


def pixels_for(shape, batch):
    """Random smooth pixels for an input of this shape, whose free sides are not integers."""
    import cv2

    sides = [side if isinstance(side, int) else FREE_SIDES[axis] for axis, side in enumerate(shape[1:], 1)]
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (batch, 8, 8, 3), dtype=np.uint8)
    if sides[-1] == 3:
        return np.stack([cv2.resize(one, (sides[1], sides[0]), interpolation=cv2.INTER_CUBIC) for one in coarse])
    images = [cv2.resize(one, (sides[2], sides[1]), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1) for one in coarse]
    return ((np.stack(images) - 116.0) / 58.0).astype(np.float32)


def engine_args(graph, folder):
    """The arguments of a Python model's `initialize` for a graph."""
    import onnxruntime as ort

    version = Path(folder, "1")
    version.mkdir(exist_ok=True)
    link = version / "model.onnx"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(graph).absolute())
    shape = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).get_inputs()[0].shape
    dims = [side if isinstance(side, int) else -1 for side in shape[1:]]
    config = {
        "max_batch_size": 8, "input": [{"name": "input", "dims": dims}], "output": [{"name": name} for name in OUTPUTS]
    }  # fmt: skip
    return {"model_repository": str(folder), "model_version": "1", "model_config": json.dumps(config)}, shape


def differences(found, wanted):
    """How far logits are from those of the processor: largest and mean difference by output."""
    return {
        name: {
            "max": float(np.abs(found[name] - wanted[name]).max()),
            "mean": float(np.abs(found[name] - wanted[name]).mean()),
        }
        for name in OUTPUTS
    }


def on_processor(graph, pixels):
    """The logits of ONNX Runtime on the processor."""
    import onnxruntime as ort

    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(OUTPUTS, {"input": pixels}), strict=True))


def compiled(graph, session, shape):
    """The graph for one shape of the input, on the providers of a session that takes all shapes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    for side, size in zip(session.get_inputs()[0].shape, shape, strict=True):
        if isinstance(side, str):
            options.add_free_dimension_override_by_name(side, size)
    providers = [(name, session.get_provider_options()[name]) for name in session.get_providers()]
    return ort.InferenceSession(graph, options, providers=providers)


def onnx_runtime(graph, provider):
    """The engine on ONNX Runtime through the code of `--config-name gpu`: parity, time alone, with copies."""
    import onnxruntime as ort

    from m2f_backend.onnx_session import open_engine

    report = {"version": ort.__version__, "provider": provider, "batches": {}}
    device = "cpu" if provider == "cpu" else "cuda"
    with tempfile.TemporaryDirectory() as folder:
        args, shape = engine_args(graph, folder)
        start = time.perf_counter()
        parameters = {"execution_providers": provider, "compiled_shapes": "8"}
        engine, stays = open_engine(args, parameters), open_engine(args, parameters | {"device_outputs": "true"})
        report["load_s"] = round((time.perf_counter() - start) / 2, 2)
        for batch in BATCHES:
            pixels = pixels_for(shape, batch)
            start = time.perf_counter()
            found = {name: value.numpy() for name, value in engine.run({"input": pixels}).items()}
            first = round(time.perf_counter() - start, 2)
            if batch == 1:
                report["differences"] = differences(found, on_processor(graph, pixels))
            session = compiled(graph, engine.session, pixels.shape)
            binding = session.io_binding()
            binding.bind_ortvalue_input("input", ort.OrtValue.ortvalue_from_numpy(pixels, device, 0))
            for name, value in found.items():
                binding.bind_ortvalue_output(
                    name, ort.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype, device, 0)
                )
            there = stays.run({"input": pixels})["mask_logits"]
            report["batches"][batch] = {
                "input": list(pixels.shape),
                "first_s": first,
                "engine_ms": median_ms(lambda session=session, binding=binding: session.run_with_iobinding(binding)),
                "host_to_host_ms": median_ms(lambda pixels=pixels: engine.run({"input": pixels})),
                "host_to_device_ms": median_ms(lambda pixels=pixels: stays.run({"input": pixels})),
                "copy_in_ms": median_ms(
                    lambda pixels=pixels: ort.OrtValue.ortvalue_from_numpy(pixels, device, 0), seconds=0.5
                ),
                "copy_masks_out_ms": median_ms(there.numpy, seconds=0.5),
                "masks_bytes": found["mask_logits"].nbytes,
            }
    return report


def tensorrt(graph):
    """The engine that `m2f engine` would build: time of the build, parity, time alone and with copies."""
    from m2f_export.engine import Profile, build_engine
    from m2f_export.onnx_files import load_onnx
    from m2f_export.plan_runner import PlanRunner

    model = load_onnx(Path(graph))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value or None for dim in dims]
    first = 1 if shape[-1] == 3 else 2
    free = {
        name: (FREE_SIDES[axis],) * 3 for name, axis in (("height", first), ("width", first + 1)) if shape[axis] is None
    }
    if first == 2 and free:
        free = {"height": (800,) * 3, "width": (1344,) * 3}
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder, "model.plan")
        report = vars(build_engine(model, plan, profile=Profile(batch=(1, 1, 8), **free))) | {"batches": {}}
        try:
            runner = PlanRunner(plan)
        except Exception as error:  # without a GPU the build is all there is
            return report | {"not_run": str(error)}
        for batch in BATCHES:
            pixels = pixels_for(shape, batch)
            found = runner.run({"input": pixels})
            if batch == 1:
                report["differences"] = differences(found, on_processor(graph, pixels))
            report["batches"][batch] = {
                "input": list(pixels.shape),
                "engine_ms": median_ms(runner.launch),
                "host_to_host_ms": median_ms(lambda pixels=pixels: runner.run({"input": pixels})),
            }
    return report


def pytorch():
    """The embedded model's network in PyTorch: only its time, where nothing faster is installed."""
    import torch

    from m2f_export.sources.mmdetection import load_mmdet

    folder = ROOT / "examples/shapes"
    network = load_mmdet(folder / "mask2former_shapes.py", folder / "mask2former_shapes.pth").network
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device)

    def call():
        with torch.inference_mode():
            network(image)
        if device == "cuda":
            torch.cuda.synchronize()

    report = {"version": torch.__version__, "device": device, "batches": {}}
    for batch in BATCHES:
        image = torch.rand(batch, 3, 256, 256, device=device)
        report["batches"][batch] = {"engine_ms": median_ms(call)}
    return report


def service(repository, config_name, parameters, seconds=4.0):
    """A server: what it chose, whether its answers are those committed, images per second, and time by step."""
    from m2f_client import Client
    from m2f_server import serve

    with tempfile.TemporaryDirectory() as folder:
        copied = changed(Path(repository), Path(folder, "models"), parameters)
        start = time.perf_counter()
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "timeout": 240}
        with serve(model_repository=copied, config_name=config_name, **ports) as server:
            ready = round(time.perf_counter() - start, 1)
            report = {"config": server.choice.label, "why": server.choice.why, "start_s": ready}
            with Client(f"grpc://{server.grpc_url}") as client:
                if Path(repository) == REPOSITORY:
                    report["parity"] = parity(client)
                images = [path.read_bytes() for path in PICTURES if path.name.startswith("scene")]
                client.predict(images[0], outputs=("mask_logits",))
                for clients in CLIENTS:
                    report[f"{clients} clients"] = load(client, images, clients, seconds)
            statistics_url = "/v2/models/stats"
            report["steps_ms"] = step_times(json.loads(server.control.call("GET", statistics_url)))
    return report


def changed(repository, target, parameters):
    """A copy of a repository, in links, with parameters of the engine's `configs/gpu.pbtxt` replaced."""
    for path in repository.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            link = target / path.relative_to(repository)
            link.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text() if path.name == "gpu.pbtxt" else None
            if text is None:
                link.symlink_to(path.absolute())
                continue
            for key, value in parameters.items():
                before, quote, rest = text.partition(f'key: "{key}" value {{ string_value: "')
                text = f"{before}{quote}{value}{rest[rest.index(chr(34)) :]}" if quote else text
            link.write_text(text)
    return target


def found(client, encoded):
    """An answer, as far as two are compared."""
    result = client.predict(encoded, outputs=STRUCTURED_OUTPUTS, score_threshold=CONFIDENT)
    return Found(result.scores.tolist(), result.labels.tolist(), result.rle, tuple(result.size))


def parity(client):
    """How far the answers are from those committed, over the example pictures."""
    stored = json.loads(ANSWERS.read_text())
    wanted = {
        index: Found(a["scores"], a["labels"], [text.encode() for text in a["rle"]], tuple(a["size"]))
        for index, a in enumerate(stored[path.name] for path in PICTURES)
    }
    answers = {index: found(client, path.read_bytes()) for index, path in enumerate(PICTURES)}
    return agreement.compare(wanted, answers).to_dict()


def load(client, images, clients, seconds):
    """Images per second and the median time of a request, with so many clients at once."""
    times, end = [], time.perf_counter() + seconds

    def ask(number):
        count = number
        while time.perf_counter() < end:
            start = time.perf_counter()
            client.predict(images[count % len(images)])
            times.append(time.perf_counter() - start)
            count += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    return {
        "images_per_second": round(len(times) / elapsed, 1),
        "median_ms": round(statistics.median(times) * 1e3, 2) if times else None,
    }


def step_times(statistics_of):
    """Milliseconds an execution of each step took, and how many requests it had on average."""
    steps = {}
    for model in statistics_of["model_stats"]:
        inference, count = model["inference_stats"], model["execution_count"]
        if count and inference["success"]["count"]:
            steps[model["name"]] = {
                "per_execution": round(inference["compute_infer"]["ns"] / 1e6 / count, 3),
                "in_and_out": round(
                    (inference["compute_input"]["ns"] + inference["compute_output"]["ns"]) / 1e6 / count, 3
                ),
                "queue": round(inference["queue"]["ns"] / 1e6 / inference["queue"]["count"], 3),
                "batch": round(model["inference_count"] / count, 2),
            }
    return steps


def post_processing():
    """The core's post-processing of the embedded model's logits, on the processor: milliseconds an image."""
    import cv2

    from m2f.logits import ImageLogits
    from m2f.model_facts import NO_FACTS
    from m2f.postprocess import postprocess
    from m2f.settings import Settings

    picture = next(path for path in PICTURES if path.name.startswith("scene"))
    pixels = cv2.resize(cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB), (256, 256))
    graph = str(REPOSITORY / "mask2former_engine/1/model.onnx")
    cls_logits, mask_logits = on_processor(graph, pixels[None]).values()
    sizes = {"256x256": (256, 256), "1080x1920": (1080, 1920)}
    return {
        name: median_ms(
            lambda size=size: postprocess(
                ImageLogits(cls_logits[0], mask_logits[0], img_shape=(256, 256), ori_shape=size, mask_stride=4),
                Settings(score_threshold=0.5), NO_FACTS,
            ), seconds=1.0,
        )
        for name, size in sizes.items()
    }  # fmt: skip
