"""A repository of tiny models that do as they are told, and a server on it under a `Watch` with little patience."""

import threading
import time
from contextlib import contextmanager

from kserve import connect, image_input
from throwaway import FREE_PORTS
from tritonclient.utils import InferenceServerException
from until import until

from m2f_server import serve
from m2f_server.timing import Timing
from m2f_server.watch import Watch

CONFIG = """
backend: "python"
max_batch_size: 8
input [{ name: "image" data_type: TYPE_STRING dims: [ 1 ] }]
output [{ name: "size" data_type: TYPE_INT32 dims: [ 2 ] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
MODEL = """
import os
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            word = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[0, 0]
            if word == b"crash":
                os._exit(3)
            while word == b"hang":
                pass
            if word.startswith(b"work"):
                end = time.monotonic() + float(word.split()[1])
                while time.monotonic() < end:
                    pass
            if word.startswith(b"sleep"):
                time.sleep(float(word.split()[1]))
            size = pb_utils.Tensor("size", np.array([[24, 32]], np.int32))
            answers.append(pb_utils.InferenceResponse([size]))
        return answers
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input [{ name: "image" data_type: TYPE_STRING dims: [ 1 ] }]
output [{ name: "size" data_type: TYPE_INT32 dims: [ 2 ] }]
ensemble_scheduling { step [{
  model_name: "worker" model_version: -1
  input_map { key: "image" value: "image" }
  output_map { key: "size" value: "size" }
}] }
"""


def write_ensemble(repository, name, worker, model=MODEL):
    """An ensemble of one step."""
    write(repository, worker, CONFIG, model)
    write(repository, name, ENSEMBLE.replace('"worker"', f'"{worker}"'))


def write(repository, name, config, model=None):
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    if model:
        (repository / name / "1" / "model.py").write_text(model)


def ask(server, word=b"hello", model="public"):
    """The model's answer, or what the server says instead."""
    protocol = connect(server, "grpc")
    try:
        return protocol.infer(model, image_input(word))["size"].tolist()
    except InferenceServerException as error:
        return error.message()
    finally:
        protocol.client.close()


class Asked(threading.Thread):
    """A request under way."""

    def __init__(self, server, word):
        super().__init__(daemon=True)
        self.answer = None
        self._ask = lambda: ask(server, word)
        self.start()
        time.sleep(0.3)

    def run(self):
        self.answer = self._ask()


@contextmanager
def watched(repository, *, strict=True, **timing):
    """A server under a `Watch` with little patience; yields it, the watch, its events and what ended it."""
    patience = {
        "timeout_s": 2.0,
        "longest_work_s": 4.0,
        "canary_period_s": 0.2,
        "canary_rest": 0.0,
        "models_period_s": 0.2,
    }
    impatient = Timing(**{**patience, **timing})
    events, stop, ended = [], threading.Event(), []
    with serve(model_repository=repository, strict=strict, **FREE_PORTS) as server:
        own = Watch(server, lambda event, **fields: events.append((event, fields)), impatient)

        def run():
            try:
                own.run(stop.wait, lambda: None)
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            until(lambda: "" in own.troubles.values() or ended)
            yield server, own, events, ended
        finally:
            stop.set()
            thread.join()
            server.kill()  # Triton takes its time after a lost stub
