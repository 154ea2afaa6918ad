"""Every limit, set low, on the real server, with an engine that can be held."""

import shutil
import threading
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
from conftest import ROOT
from exposition import wait_until
from harm import Harm
from kserve import connect, image_input
from pictures import encode, photo
from tritonclient.utils import InferenceServerException

from m2f.contract import PUBLIC_MODEL, PUBLIC_TENSOR_MODEL
from m2f_backend.backpressure import LONGEST
from m2f_export.repository_writer import set_parameter
from m2f_server import serve

pytestmark = pytest.mark.server

QUEUE, WAIT_S = 2, 2.5
LIMITS = {
    "preprocess": {"max_bytes": "20000", "max_pixels": "10000", "layout": "float32_chw", "std": "[1e9, 1e9, 1e9]"},
    "postprocess": {"max_pixels": "10000", "max_instances": "10"},
    "panoptic": {"max_pixels": "10000", "max_output_bytes": "30000"},
    "semantic": {"max_pixels": "10000", "max_output_bytes": "30000"},
    "masks": {"max_output_bytes": "2000"},
}
ENGINE = '''
import os
import time
import numpy as np
from m2f_backend.step import BatchedModel

class TritonPythonModel(BatchedModel):
    """An image whose first value is -1 takes as long as a file is there; not a number makes logits that are none."""

    def infer(self, arrays):
        first = arrays["input"][:, 0, 0, 0]
        if np.isinf(first).any():
            raise RuntimeError("infinite")
        while (first == -1).any() and os.path.exists(HOLD):
            time.sleep(0.01)
        cls_logits = np.zeros((len(first), 20, 6), np.float32)
        cls_logits[:, :, 1] = 20 + first[:, None]  # sure
        return {"cls_logits": cls_logits, "mask_logits": np.full((len(first), 20, 64, 64), 9, np.float32)}
'''


@pytest.fixture(scope="module")
def hold(tmp_path_factory):
    """While it is there, the engine finishes no image whose first value is -1."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def limited(tmp_path_factory, hold):
    """A server whose limits are low; its engine reads floats."""
    repository = tmp_path_factory.mktemp("limits") / "repository"
    shutil.copytree(ROOT / "model_repository", repository)
    for path in repository.rglob("*.pbtxt"):
        text = path.read_text().replace("TYPE_UINT8 dims: [ 256, 256, 3 ]", "TYPE_FP32 dims: [ 3, 256, 256 ]")
        for name, value in LIMITS.get(path.parent.name.removeprefix("mask2former_"), {}).items():
            text = set_parameter(text, name, value)
        if path.parent.name == "mask2former_preprocess":
            text = text.replace("max_queue_size: 64", f"max_queue_size: {QUEUE}")
            text = text.replace("microseconds: 30000000", f"microseconds: {int(WAIT_S * 1e6)}")
        if path.name == "cpu.pbtxt":
            text = text.replace("count: 2", "count: 1")  # an engine that is held has no other instance
        path.write_text(text)
    (repository / "mask2former_engine/1/model.py").write_text(ENGINE.replace("HOLD", repr(str(hold))))
    with serve(model_repository=repository, config_name="cpu", http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


STATUS = {
    "http": {"invalid": "400", "unavailable": "503", "internal": "500"},
    "grpc": {name: f"StatusCode.{name.upper()}" for name in ("unavailable", "internal")}
    | {"invalid": "StatusCode.INVALID_ARGUMENT"},
}


@contextmanager
def connected(server, protocol):
    """A connection, closed in the end: Triton waits for open ones when it stops."""
    triton = connect(server, protocol)
    vars(triton).update(STATUS[protocol])
    with closing(triton.client):
        yield triton


@pytest.fixture(params=["http", "grpc"])
def protocol(request):
    return request.param


@pytest.fixture
def triton(limited, protocol):
    with connected(limited, protocol) as opened:
        yield opened


def tensors(*first, ori_shape=(50, 60)):
    """Images for the engine, each with its first value."""
    inputs = np.zeros((len(first), 3, 256, 256), np.float32)
    inputs[:, 0, 0, 0] = first
    shapes = [np.array([shape] * len(first), np.int32) for shape in ((256, 256), ori_shape)]
    return {"input": inputs, "img_shape": shapes[0], "ori_shape": shapes[1]}


def infer(triton, *first, outputs=("num_instances",), ori_shape=(50, 60), **parameters):
    parameters = {"keep_top_k": 5, **parameters}
    return triton.infer(PUBLIC_TENSOR_MODEL, tensors(*first, ori_shape=ori_shape), outputs, **parameters)


def refused(status, message, call, *args, **kwargs):
    with pytest.raises(InferenceServerException, match=message) as error:
        call(*args, **kwargs)
    assert error.value.status() == status


def test_an_image_of_too_many_bytes_or_pixels_is_refused(triton):
    small = encode(photo())
    assert triton.infer(PUBLIC_MODEL, image_input(small), ["size"], keep_top_k=1)
    inputs = image_input(small, bytes(20_001))
    message = "image 1 of 2: the image is too large: 20001 bytes encoded; allowed are 20000"
    refused(triton.invalid, message, triton.infer, PUBLIC_MODEL, inputs)
    inputs = image_input(encode(photo(10, 1001), "jpg"))
    refused(triton.invalid, "too large: 1001 x 10; allowed are 10000 pixels", triton.infer, PUBLIC_MODEL, inputs)


@pytest.mark.parametrize("output", ["scores", "panoptic", "semantic"])
def test_an_original_size_of_too_many_pixels_is_refused(triton, output):
    message = r"ori_shape \(10, 1001\) is too large; allowed are 10000|'\w+' would take 40040 bytes"
    refused(triton.invalid, message, infer, triton, 0, outputs=[output], ori_shape=(10, 1001))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("panoptic", "'panoptic' would take 32000 bytes .*; allowed are 30000"),
        ("semantic", "'semantic' would take 32000 bytes .*; allowed are 30000"),
        ("masks", "'masks' would take 40000 bytes .*; allowed are 2000"),
        ("packed_masks", "'packed_masks' would take 5200 bytes .*; allowed are 2000"),
    ],
)
def test_an_output_of_too_many_bytes_is_refused(triton, output, message):
    refused(triton.invalid, message, infer, triton, 0, outputs=[output], ori_shape=(80, 100))


def test_too_many_instances_are_refused(triton):
    message = "an image has 20 instances; allowed are 10: raise 'score_threshold', or set 'keep_top_k'"
    refused(triton.invalid, message, infer, triton, 0, keep_top_k=-1)
    assert infer(triton, 0, keep_top_k=10)["num_instances"] == 10


@pytest.mark.parametrize("output", ["scores", "panoptic", "semantic"])
def test_logits_that_are_no_numbers_are_an_error_of_the_server(triton, output):
    refused(triton.internal, "EngineError: cls_logits are not finite", infer, triton, np.nan, outputs=[output])
    assert np.isnan(infer(triton, np.nan, outputs=["cls_logits"])["cls_logits"]).any()  # raw is raw


class Asked:
    """Requests over connections of their own, one begun some seconds after the other.

    Attributes:
        done: the seconds and the error of each, in order; None for one that is not answered yet.
    """

    def __init__(self, server, protocol, asks, apart=0.05):
        self.done = [None] * len(asks)
        self._threads = []
        for i, ask in enumerate(asks):
            self._threads.append(threading.Thread(target=self._run, args=(server, protocol, i, ask)))
            self._threads[-1].start()
            time.sleep(apart)

    def _run(self, server, protocol, i, ask):
        with connected(server, protocol) as triton:
            started = time.monotonic()
            try:
                error = ask(triton) and None
            except InferenceServerException as raised:
                error = raised
            self.done[i] = (time.monotonic() - started, error)

    def refused(self, message, count):
        """Wait until so many have failed with a message; return seconds and error of each that has."""
        return wait_until(
            lambda failed: len(failed) >= count,
            lambda: [answer for answer in self.done if answer and answer[1] and message in answer[1].message()],
        )

    def join(self):
        for thread in self._threads:
            thread.join()
        return self.done


def asking(*first):
    return lambda triton: infer(triton, *first)


def asking_with(data=None, outputs=("num_instances",)):
    inputs = image_input(encode(photo(9, 9)) if data is None else data)
    return lambda triton: triton.infer(PUBLIC_MODEL, inputs, outputs, keep_top_k=1)


def wait_for(server, step, count):
    """Wait until so many requests are in the queue of a step."""
    queue = wait_until(lambda now: now == count, lambda: server.control.pending()[f"mask2former_{step}"])
    assert queue == count


@contextmanager
def held(server, protocol, hold, asks):
    """The engine at work on one request that it does not finish, and others sent after it."""
    hold.touch()
    first = Asked(server, protocol, [asking(-1)])
    others = Asked(server, protocol, asks, apart=0.01)
    try:
        yield others
    finally:
        hold.unlink()
        others.join()
        assert first.join()[0][1] is None


@contextmanager
def blocked(server, protocol, hold):
    """An engine that finishes nothing, its queue as long as it gets, and preprocessing that waits for room in it."""
    flood = [asking_with()] * 4 * LONGEST  # both instances of preprocessing may have room for LONGEST in mind
    with held(server, protocol, hold, flood) as asked:
        assert asked.refused("Exceeds maximum queue size", 1)
        wait_for(server, "preprocess", 0)
        assert LONGEST <= server.control.pending()["mask2former_engine"] <= 2 * LONGEST
        yield
    assert all(error is None or error.status() == STATUS[protocol]["unavailable"] for _, error in asked.done)


def test_requests_beyond_the_queue_are_refused_at_once_and_leave_nothing(limited, protocol, hold):
    asks = [asking_with(outputs=["scores", "masks", "packed_masks", "panoptic", "semantic", "cls_logits"])] * 9
    harm = Harm(limited)
    with blocked(limited, protocol, hold):
        asked = Asked(limited, protocol, asks)
        refused = asked.refused("Exceeds maximum queue size", len(asks) - QUEUE)  # while the engine is held
        assert len(refused) == len(asks) - QUEUE
        assert {error.status() for _, error in refused} == {STATUS[protocol]["unavailable"]}
    asked.join()
    assert harm.died() == []
    assert Asked(limited, protocol, [asking_with()]).join()[0][1] is None


def test_a_request_that_waits_too_long_is_refused(limited, protocol, hold):
    with blocked(limited, protocol, hold):
        asked = Asked(limited, protocol, [asking_with()])
        [(seconds, error)] = asked.refused("Request timeout expired", 1)
        assert error.status() == STATUS[protocol]["unavailable"]
        assert seconds >= WAIT_S


def test_a_client_may_wait_less_but_not_more(limited, hold):
    def asking_for_at_most(wait_s):
        def ask(triton):
            image = triton.module.InferInput("image", [1, 1], "BYTES")
            image.set_data_from_numpy(np.array([[encode(photo(9, 9))]], np.object_))
            triton.client.infer(PUBLIC_MODEL, [image], timeout=int(wait_s * 1e6))

        return ask

    def waited(wait_s):
        [(seconds, _)] = Asked(limited, "grpc", [asking_for_at_most(wait_s)]).refused("Request timeout expired", 1)
        return seconds

    with blocked(limited, "grpc", hold):
        assert any(0.2 <= waited(0.2) < WAIT_S for _ in range(5))  # a machine may stall now and then
        assert waited(60) >= WAIT_S


def test_of_requests_that_were_batched_a_bad_one_fails_alone(limited, protocol, hold):
    with held(limited, protocol, hold, [asking(np.inf), asking(0)]) as batched:
        wait_for(limited, "engine", 2)
    (_, bad), (_, good) = batched.done
    assert "RuntimeError: infinite" in bad.message()
    assert good is None


def test_images_of_one_request_fail_together_and_the_bad_one_is_named(triton):
    good = encode(photo(9, 9))
    message = "image 6 of 8: not an image this server reads"
    refused(triton.invalid, message, triton.infer, PUBLIC_MODEL, image_input(*[good] * 6, b"bad", good))
    refused(triton.invalid, "batch-size must be <= 8", triton.infer, PUBLIC_MODEL, image_input(*[good] * 9))


def test_of_eight_requests_with_one_image_the_bad_one_fails_alone(server, protocol):
    done = Asked(server, protocol, [asking_with(b"bad" if i == 5 else None) for i in range(8)], apart=0).join()
    errors = {i: error.message() for i, (_, error) in enumerate(done) if error}
    assert list(errors) == [5]
    assert "not an image" in errors[5]
