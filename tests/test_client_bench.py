"""`m2f bench`: what it reads of the server, what it prints, and what it says when something breaks."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from until import until

from m2f_cli.main import main
from m2f_client import InvalidRequest, ModelNotFound, ServerError
from m2f_client.bench.server import Observer
from m2f_client.fake import result_of, stacked
from m2f_client.step_times import spent

IMAGES = Path(__file__).parents[1] / "examples/images"
SCHEMES = pytest.mark.parametrize("scheme", ["grpc", "http"])
STEPS = ["mask2former_preprocess", "mask2former_engine", "mask2former_postprocess"]


def found(_request=None):
    return stacked([result_of(np.ones((1, 4, 6), bool))])


def bench(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


# What the server says


def step(name, takes, gives):
    return {"model_name": name, "input_map": {k: k for k in takes}, "output_map": {k: k for k in gives}}


CONFIGS = {
    "m": {
        "name": "m",
        "input": [{"name": "image", "data_type": "TYPE_STRING"}],
        "output": [{"name": "num_instances"}, {"name": "masks"}],
        "ensemble_scheduling": {
            "step": [
                step("first", ["image"], ["input"]),
                step("network", ["input"], ["cls_logits"]),
                step("last", ["cls_logits"], ["num_instances", "inner"]),
                step("dense", ["inner"], ["masks"]),
            ]
        },
    },
    "first": {"name": "first", "backend": "python", "instance_group": [{"count": 2}]},
    "network": {
        "name": "network", "platform": "tensorrt_plan", "max_batch_size": 8, "dynamic_batching": {},
        "input": [{"dims": ["3", "256", "320"]}], "instance_group": [{"count": 2, "gpus": [0, 1]}],
    },
    "last": {"name": "last", "backend": "python"},
    "dense": {"name": "dense", "backend": "python"},
}  # fmt: skip


class FakeConnection:
    """A server that has answered `requests` requests, `work` ns each; or that refuses to tell."""

    def __init__(self, *, error=None, requests=0, work=10):
        self.error, self.requests, self.work, self.looks = error, requests, work, 0

    async def model_config(self, model, _timeout):
        return CONFIGS[model]

    async def statistics(self, _timeout):
        self.looks += 1
        if self.error:
            raise self.error
        counted = {"count": self.requests, "ns": self.requests * self.work}
        return [{"name": "m", "version": "1", "inference_stats": {"success": counted}}]


def observer(*connections, outputs=("num_instances",)):
    return Observer(connections, model="m", outputs=outputs, timeout=5)


def test_the_steps_that_a_request_runs():
    steps = observer(FakeConnection()).steps
    assert [(step.name, step.role) for step in steps] == [
        ("first", "preprocess"), ("network", "engine"), ("last", "postprocess"),
    ]  # fmt: skip
    assert [step.instances for step in steps] == [2, 4, 1]
    assert (steps[1].runs_on, steps[1].max_batch, steps[1].batches, steps[1].input_size) == (
        "tensorrt_plan", 8, True, (256, 320),
    )  # fmt: skip
    assert [step.name for step in observer(FakeConnection(), outputs=["masks"]).steps][-1] == "dense"


def test_statistics_of_several_servers_are_summed():
    servers = FakeConnection(requests=5), FakeConnection(requests=7)
    watching = observer(*servers)
    before = watching.spent(0)
    for server in servers:
        server.requests += 3
    done = watching.counted(before, watching.spent(6), 6)
    assert (done.requests, done.total_ns) == (6, 60)


def test_statistics_wait_until_the_answers_are_counted():
    """Triton answers a request before it counts it."""
    server = FakeConnection()
    watching = observer(server)
    told = server.statistics

    async def late(timeout):
        server.requests = min(4, server.looks)
        return await told(timeout)

    server.statistics = late
    assert watching.spent(4)["m"].requests == 4


@pytest.mark.parametrize("counted", [0, 5, -3])
def test_statistics_of_another_server_are_not_believed(counted):
    server = FakeConnection(requests=10)
    watching = observer(server)
    before = watching.spent(0)
    server.requests += counted
    after = spent(asyncio.run(server.statistics(5)))
    assert watching.counted(before, after, 10) is None
    assert f"the server counted {max(0, counted)} of 10 answered requests" in watching.blind


def test_a_server_may_keep_its_statistics_to_itself():
    watching = observer(FakeConnection(error=InvalidRequest("the server wants a secret")))
    assert watching.blind == "no configuration or statistics from the server: the server wants a secret"
    assert watching.spent(5) == {}
    assert watching.counted({}, {}, 5) is None


# The command


@SCHEMES
@pytest.mark.server
def test_a_real_server(server, scheme):
    url = f"{scheme}://{server.grpc_url if scheme == 'grpc' else server.http_url}"
    ran = bench(IMAGES / "scene_1.jpg", "--url", url, "--seconds", 0.1, "--concurrency", "1,2", "--json")
    assert (ran.exit_code, ran.stderr) == (0, "")
    read = json.loads(ran.stdout)
    assert (read["url"], read["model"], read["blind"], read["on_this_machine"]) == (url, "mask2former", "", True)
    assert [step["name"] for step in read["steps"]] == STEPS
    assert read["images"]["count"] == 1
    assert [level["in_flight"] for level in read["levels"]] == [1, 2]
    for level in read["levels"]:
        assert level["complete"]
        assert level["images"] >= level["in_flight"]
        assert level["counted"] >= level["images"]
        assert level["failed"] == {}
        assert [time["name"] for time in level["steps"]] == STEPS
        assert all(time["work_ms"] > 0 for time in level["steps"])
        assert level["bytes_sent"] == 4 + (IMAGES / "scene_1.jpg").stat().st_size
        assert level["mean_ms"] == pytest.approx(level["client_ms"] + level["trip_ms"])


@pytest.mark.server
def test_a_model_that_is_not_there(server):
    ran = bench("--url", server.grpc_url, "--model", "parts")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "'parts' is not found" in ran.stderr
    assert ran.stderr.endswith("it has: mask2former\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--url", "s3://x"], 2, "Invalid value for --url: 's3://x' is not an address"),
        (["--concurrency", "0,3"], 2, "'0,3': allowed are numbers from 1 to 32, separated by commas"),
        (["--concurrency", "1;2"], 2, "'1;2': allowed are"),
        (["--concurrency", ""], 2, "'': allowed are"),
        (["--seconds", "0"], 2, "Invalid value for '--seconds'"),
        (["--output", "boxen"], 2, "Invalid value for '--output'"),
        (["--parameter", "timeout=3"], 2, "'timeout' is not a request parameter"),
        (["nowhere.jpg"], 1, "m2f: nowhere.jpg: No such file or directory\n"),
        (["--url", "grpc://127.0.0.1:1", "--timeout", "20"], 1, "m2f: no gRPC server at grpc://127.0.0.1:1"),
        (["--url", "http://127.0.0.1:1"], 1, "m2f: no HTTP server at http://127.0.0.1:1"),
    ],
)
def test_one_message_for_what_is_wrong(arguments, code, said):
    ran = bench(*arguments)
    assert (ran.exit_code, ran.stdout) == (code, "")
    assert said in ran.stderr
    assert ran.stderr.count("m2f:") == (code == 1)


def test_an_empty_folder(tmp_path):
    ran = bench(tmp_path)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (1, "", f"m2f: {tmp_path}: no images in this folder\n")


def test_a_server_is_not_asked_without_an_image():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ran = bench("nowhere.jpg", "--url", f"http://127.0.0.1:{server.getsockname()[1]}", "--timeout", 1)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert ran.exit_code == 1


def test_broken_images_are_named_and_left_out(tmp_path):
    """The server of this test tells neither configuration nor statistics."""

    def answer(request):
        if request.inputs["image"][0, 0] == b"broken":
            raise InvalidRequest("not an image this server reads")
        return found()

    for name, data in {"a.png": b"a", "b.png": b"broken", "c.png": b"c", "notes.txt": b""}.items():
        (tmp_path / name).write_bytes(data)
    with serving(answer) as fake:
        ran = bench(tmp_path, "--url", fake.url, "--seconds", 0.1, "--concurrency", "3,1,3")
    assert ran.exit_code == 1
    assert ran.stderr.splitlines() == [
        f"m2f: skipped 1 file that is not an image: {tmp_path}/notes.txt",
        f"m2f: {tmp_path}/b.png: not an image this server reads",
    ]
    assert "2 of 3 images, median 6x4" in ran.stdout
    assert "no times by step: no configuration or statistics from the server: " in ran.stdout


def test_a_server_that_goes_away():
    """What was measured is printed."""
    life = 40

    def answer(_request):
        if len(fake.requests) > life:
            raise ModelNotFound("unknown model: 'm' has no available versions")
        return found()

    with serving(answer) as fake:
        ran = bench("--url", fake.url, "--seconds", 600, "--concurrency", 2, "--json")
    assert ran.exit_code == 1
    assert "m2f: the server was lost: the server at grpc://" in ran.stderr
    (level,) = json.loads(ran.stdout)["levels"]
    assert not level["complete"]
    assert level["images"] == life - 1 - 2  # without the first answer, and one of each caller
    assert sum(level["failed"].values()) >= 3


def test_a_level_without_an_answer_says_why():
    def answer(_request):
        if len(fake.requests) == 3:  # after the first answer and the one that does not count
            raise ServerError("the engine broke")
        return found()

    with serving(answer) as fake:
        ran = bench("--url", fake.url, "--seconds", 0.1, "--concurrency", "1,2", "--json")
    assert ran.exit_code == 1
    assert ran.stderr == "m2f: no answer with 1 in flight, 1 failed: the engine broke\n"
    assert [level["in_flight"] for level in json.loads(ran.stdout)["levels"]] == [2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_what_was_measured(number):
    with serving(lambda _: found()) as fake:
        command = [Path(sys.executable).with_name("m2f"), "bench", "--url", fake.url, "--seconds", "3600", "--json"]
        running = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until(lambda: len(fake.requests) > 10)
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 1
    (level,) = json.loads(out)["levels"]
    assert (level["in_flight"], level["complete"]) == (1, False)
    assert level["images"] > 5
    assert err.endswith("m2f: stopped; measured in flight: 1\n")
