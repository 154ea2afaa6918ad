"""The steps' own metrics on the `/metrics` of the real server."""

import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.http
from exposition import scrape, wait_until
from kserve import connect, image_input
from pictures import encode, photo, png_header_only
from tritonclient.utils import InferenceServerException

from m2f.contract import CANARY_ID, PUBLIC_MODEL, PUBLIC_TENSOR_MODEL
from m2f.errors import ERROR_KINDS
from m2f.record import PHASES
from m2f_server import serve

pytestmark = pytest.mark.server
REPOSITORY = Path(__file__).parents[1] / "model_repository"
FAULT = "fault"


@pytest.fixture(scope="module")
def counting():
    """A server that no other test sends anything to."""
    with serve(
        model_repository=REPOSITORY,
        config_name="cpu",
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        extra_args=["--exit-timeout-secs=1"],
    ) as running:
        yield running


class Growth:
    """How much metrics have grown since this was made."""

    def __init__(self, server):
        self.server = server
        self.before = scrape(server)

    def of(self, name, **labels):
        return scrape(self.server).total(name, **labels) - self.before.total(name, **labels)

    def reaches(self, amount, name, **labels):
        """Wait until a metric has grown by an amount; it must not grow by more."""
        return wait_until(lambda grown: grown >= amount, lambda: self.of(name, **labels)) == pytest.approx(amount)


def test_work_is_counted(counting):
    grown = Growth(counting)
    infer = connect(counting, "http").infer
    image = image_input(encode(photo()))
    counting.control.infer(PUBLIC_MODEL, image, ["num_instances"], request_id=CANARY_ID, timeout=60.0)  # is not counted
    files = [encode(photo(), kind) for kind in ("jpg", "png", "png", "webp")]
    found = infer(PUBLIC_MODEL, image_input(*files), ["num_instances"], score_threshold=0.0)["num_instances"]
    assert grown.reaches(len(files), "m2f_instances_count")
    assert grown.reaches(found.sum(), "m2f_instances_sum")
    for kind, count in {"jpeg": 1, "png": 2, "webp": 1}.items():
        assert grown.reaches(count, "m2f_images_total", format=kind)
    for phase in PHASES:
        assert grown.of("m2f_phase_seconds_total", phase=phase) > 0
    assert grown.of("m2f_errors_total") == 0
    assert scrape(counting).values("m2f_info") == [1]


TENSORS = {
    "input": np.zeros((1, 256, 256, 3), np.uint8),
    "img_shape": np.array([[256, 200]], np.int32),
    "ori_shape": np.array([[300, 240]], np.int32),
}
BAD = {
    "image_format": (image_input(b"no picture"), {}),
    "image_damaged": (image_input(encode(photo(), "jpg")[:-200]), {}),
    "image_too_large": (image_input(png_header_only(30000, 30000)), {}),
    "parameter": (image_input(encode(photo())), {"score_threshold": 7}),
    "tensor": ({**TENSORS, "img_shape": np.array([[300, 256]], np.int32)}, {}),
    "output_too_large": ({**TENSORS, "ori_shape": np.array([[65_535, 1_000]], np.int32)}, {"score_threshold": 0.0}),
}


def test_a_wrong_request_of_each_kind_is_known():
    assert set(BAD) == set(ERROR_KINDS)


@pytest.mark.parametrize("kind", BAD)
def test_errors_are_counted_by_kind(counting, kind):
    inputs, parameters = BAD[kind]
    model = PUBLIC_MODEL if "image" in inputs else PUBLIC_TENSOR_MODEL
    outputs = ["masks"] if kind == "output_too_large" else ["scores"]
    grown = Growth(counting)
    for protocol in ("http", "grpc"):
        with pytest.raises(InferenceServerException):
            connect(counting, protocol).infer(model, inputs, outputs, **parameters)
    assert grown.reaches(2, "m2f_errors_total", kind=kind)
    assert grown.of("m2f_errors_total") == 2
    if kind == "image_damaged":  # it took time, too
        assert wait_until(bool, lambda: grown.of("m2f_phase_seconds_total", phase="decode")) > 0
        assert grown.of("m2f_images_total") == 0


def test_every_step_has_every_kind_from_the_start(counting):
    exported = scrape(counting)
    for model in REPOSITORY.iterdir():
        if (model / "1" / "model.py").is_file():
            for kind in (*ERROR_KINDS, FAULT):
                assert len(exported.values("m2f_errors_total", model=model.name, kind=kind)) == 1


@pytest.fixture
def reloadable(tmp_path):
    """A server whose models can be loaded again, with two instances of post-processing."""
    repository = tmp_path / "models"
    shutil.copytree(REPOSITORY, repository)
    config = repository / "mask2former_postprocess" / "config.pbtxt"
    text = config.read_text()
    assert "KIND_CPU count: 1" in text
    config.write_text(text.replace("KIND_CPU count: 1", "KIND_CPU count: 2"))
    explicit = ["--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=1"]
    with serve(
        model_repository=repository, config_name="cpu", http_port=0, grpc_port=0, metrics_port=0, extra_args=explicit
    ) as running:
        running.repository = repository
        yield running


def kill_a_stub(server, model):
    living = [child for child in psutil.Process(server.pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    next(stub for stub in living if any(model in word for word in stub.cmdline())).kill()


def test_counts_survive_instances_kills_and_reloads(reloadable):
    """Instances and generations of a step share their series, and none of them takes it from the others."""
    step = "mask2former_postprocess"
    infer = connect(reloadable, "grpc").infer
    control = tritonclient.http.InferenceServerClient(reloadable.http_url)
    secret = reloadable.access.headers
    counted = 0

    def work(images=4):
        nonlocal counted
        for _ in range(images):
            infer(PUBLIC_MODEL, image_input(encode(photo())), ["num_instances"])
        counted += images
        exported = wait_until(
            lambda exported: exported.total("m2f_instances_count") >= counted, lambda: scrape(reloadable)
        )
        assert exported.values("m2f_instances_count") == [counted]
        assert len(exported.values("m2f_errors_total", model=step, kind=FAULT)) == 1

    work()
    for _ in range(2):
        kill_a_stub(reloadable, step)
        for _ in range(6):  # both instances: one of them answers with an error
            try:
                infer(PUBLIC_MODEL, image_input(encode(photo())), ["num_instances"])
                counted += 1
            except InferenceServerException:
                break
        (reloadable.repository / step / "1" / "model.py").touch()  # or Triton might find nothing to load
        control.load_model(step, headers=secret)
        work()
    for model in (PUBLIC_MODEL, PUBLIC_TENSOR_MODEL, step):
        control.unload_model(model, headers=secret)
    for model in (step, PUBLIC_TENSOR_MODEL, PUBLIC_MODEL):
        control.load_model(model, headers=secret)
    work()
    control.close()
