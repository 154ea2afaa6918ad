"""Several exports of the embedded model in one repository, on the real server."""

import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from kserve import connect, image_input
from staging import contents, put_embedded

from m2f.contract import STEPS, STRUCTURED_OUTPUTS, models_of
from m2f_client import Client
from m2f_server.launch import serve

pytestmark = pytest.mark.server

STRICT = 0.9  # threshold of the export named `parts`; that of `mask2former` is 0.5


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    repository = tmp_path_factory.mktemp("exports") / "mine"
    put_embedded(repository)
    put_embedded(repository, "parts", str(STRICT))
    return repository


@pytest.fixture(scope="module")
def together(repository):
    with serve(model_repository=repository, config_name="cpu", http_port=0, grpc_port=0, metrics_port=0) as started:
        yield started


@pytest.mark.more
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_each_answers_as_alone_and_runs_its_own_steps(together, server, image_files, protocol):
    both, alone = connect(together, protocol), connect(server, protocol)
    assert both.client.is_model_ready("parts_tensor")
    for data in image_files[:2]:
        for model, threshold in {"mask2former": 0.5, "parts": STRICT}.items():
            before = both.settled_runs()
            found = both.infer(model, image_input(data), STRUCTURED_OUTPUTS)
            wanted = alone.infer("mask2former", image_input(data), STRUCTURED_OUTPUTS, score_threshold=threshold)
            for name in STRUCTURED_OUTPUTS:
                np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
            ran = {step for step, count in both.settled_runs().items() if count != before.get(step)}
            assert ran <= {model, *(f"{model}_{step}" for step in STEPS)}
            loose = both.infer(model, image_input(data), STRUCTURED_OUTPUTS, score_threshold=0.1)
            assert loose["num_instances"] > found["num_instances"]  # request parameters are those of any name


@pytest.mark.more
def test_class_names_and_a_batch_of_another_name(together, image_files):
    url = {"http": f"http://{together.http_url}", "grpc": f"grpc://{together.grpc_url}"}
    for address in url.values():
        with Client(address, model="parts") as client:
            assert client.class_names == ("circle", "square", "triangle", "star", "ring")
            assert client.predict(image_files[0]).scores.min(initial=1) >= STRICT


class Asking(threading.Thread):
    """Asks a model over and over; keeps what it got other than the right answer."""

    def __init__(self, server, model, data):
        super().__init__()
        self._triton, self._model, self._image = connect(server, "grpc"), model, image_input(data)
        self._right = self._triton.infer(model, self._image, STRUCTURED_OUTPUTS)
        self.stop, self.wrong, self.asked = threading.Event(), [], 0

    def run(self):
        while not self.stop.is_set():
            try:
                found = self._triton.infer(self._model, self._image, STRUCTURED_OUTPUTS)
                self.wrong += [name for name in found if not np.array_equal(found[name], self._right[name])]
            except Exception as error:
                self.wrong.append(error)
            self.asked += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.join()


LONG = [pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.official), pytest.param(100, marks=LONG)])
def test_exports_killed_in_a_repository_that_is_served(repository, together, image_files, kills):
    """The repository is the old or the new one, loads at any time, and the model beside it answers without an error."""
    rng = random.Random(kills)
    script = Path(__file__).parent / "staging.py"
    beside = {path: text for path, text in read(repository).items() if not path.startswith("parts")}
    files, thresholds = set(read(repository)), set()
    triton = connect(together, "grpc")
    with Asking(together, "mask2former", image_files[0]) as asking:
        for _ in range(kills):
            command = [sys.executable, script, "put_embedded", repository, "parts"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as export:
                export.stdout.readline()  # one is through
                together.control.load("parts_postprocess")  # while the next ones replace each other
                try:
                    export.wait(rng.uniform(0, 0.5))
                except subprocess.TimeoutExpired:
                    export.kill()
            found = read(repository)
            assert set(found) == files
            assert {path: found[path] for path in beside} == beside
            thresholds.add(threshold(found))
            together.control.load("parts_postprocess")
            assert triton.infer("parts", image_input(image_files[0]), ["num_instances"])["num_instances"] > 0
    assert asking.wrong == []
    assert asking.asked > kills
    assert len(thresholds - {str(STRICT)}) >= 1
    put_embedded(repository, "parts", str(STRICT))
    together.control.load("parts_postprocess")
    assert [path.name for path in repository.parent.iterdir()] == ["mine"]
    assert {path.name for path in repository.iterdir()} == {
        *models_of("parts", head=False),
        *models_of("mask2former", head=False),
    }


def read(repository):
    return {path: text for path, text in contents(repository).items() if "__pycache__" not in path}


def threshold(found):
    [text] = re.findall(r'"score_threshold" value \{ string_value: "([\d.]+)"', found["parts_postprocess/config.pbtxt"])
    return text
