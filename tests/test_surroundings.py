"""`m2f serve` in bad surroundings: pipes that nobody reads, closed streams, few files, other addresses.

The parts are tested in test_outlet, test_server_log, test_health and test_addresses; here is what a user types.
"""

import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from chaos_report import report
from supervised import PROGRAM, supervised
from throwaway import write_model

from m2f_server.ports import pick_ports

pytestmark = pytest.mark.server

TALKER = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for _ in range(30):
            pb_utils.Logger.log_error(9000 * "x")
        tensors = [pb_utils.get_input_tensor_by_name(request, "x") for request in requests]
        while any((x.as_numpy() == 9).any() for x in tensors):
            time.sleep(1)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy())]) for x in tensors]
"""
ROOT = Path(__file__).parents[1]
HOSTS = dict.fromkeys(("http", "grpc", "metrics", "health"), "127.0.0.1")


class Running(contextlib.AbstractContextManager):
    """`m2f serve`, whose output nobody needs to read, until the block is left.

    Args:
        arguments: more options.
        before: what a shell does before it starts the command.
        streams: redirections.
        options: those of Popen.

    Attributes:
        ports: by protocol.
    """

    def __init__(self, repository, *arguments, before=":", streams="", **options):
        self.ports = pick_ports(hosts=HOSTS, ports=dict.fromkeys(HOSTS, 0))
        words = [*PROGRAM, "--model-repository", str(repository), *arguments]
        words += [f"--{protocol}-port={port}" for protocol, port in self.ports.items()]
        self.process = subprocess.Popen(["sh", "-c", f'{before}; exec "$@" {streams}', "sh", *words], **options)

    def __enter__(self):
        deadline = time.monotonic() + 120
        with contextlib.ExitStack() as stack:
            stack.push(self)  # ends it if it does not become ready
            while True:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                with contextlib.suppress(OSError):
                    if self.ready()[0] == 200:
                        break
                time.sleep(0.1)
            stack.pop_all()
        return self

    def __exit__(self, *_):
        self.process.kill()  # its guard cleans up
        self.process.wait()

    def ready(self):
        """Ask `/ready`; return the status and the body."""
        status, body = self._get("/ready")
        return status, json.loads(body)

    def dropped(self):
        """Return how many log lines were dropped, as the metrics say."""
        _, metrics = self._get("/metrics")
        return float(re.search(rb"^m2f_log_lines_dropped_total (.*)$", metrics, re.MULTILINE)[1])

    def _get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["health"], timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    @property
    def server(self):
        """The `tritonserver` of this moment."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.name() == "tritonserver")

    def infer(self, value=1):
        url = f"http://127.0.0.1:{self.ports['http']}/v2/models/identity/infer"
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]}
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as response:
            return json.load(response)["outputs"][0]["data"]

    def stop(self):
        """Send SIGTERM; return the exit code and the seconds that the end took."""
        started = time.monotonic()
        self.process.terminate()
        return self.process.wait(90), time.monotonic() - started


@pytest.fixture
def start():
    """`Running`, for the length of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(Running(*arguments, **options))


def full_pipe():
    """The ends of a pipe that takes nothing more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, 4096 * b"x")
    os.set_blocking(writer, True)
    return os.fdopen(reader, "rb"), writer


def test_nobody_reads_any_of_its_output(tmp_path, start):
    reader, writer = full_pipe()
    repository = write_model(tmp_path, model=TALKER)
    running = start(repository, "--log-file=-", stdout=writer, stderr=writer, streams="<&-")
    os.close(writer)
    assert [running.infer() for _ in range(8)] == 8 * [[1]]
    for pid in (running.process.pid, running.server.pid):
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == hard
    deadline = time.monotonic() + 200
    while not running.dropped():  # a model's lines arrive after its answers
        assert time.monotonic() < deadline
        time.sleep(0.05)
    dropped = []

    def read():
        for line in reader:
            if told := re.search(rb"event=log_lines_dropped lines=(\d+)", line):
                dropped.append(int(told[1]))

    thread = threading.Thread(target=read)
    thread.start()
    while not dropped:  # somebody reads again, and is told
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(running.server.pid, signal.SIGKILL)
    reasons = set()
    while not (running.ready()[0] == 200 and "the server is restarting" in reasons):
        reasons.add(running.ready()[1]["reason"])
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not [reason for reason in reasons if "xxx" in reason or "\n" in reason]  # the log is not for everybody
    assert running.stop()[0] == 0
    thread.join(60)
    assert 0 < sum(dropped) <= 8 * 30 + 200  # what the model wrote, and Triton at its start


@pytest.mark.more
@pytest.mark.parametrize("options", [["--log-file=fifo"], ["--log-file=/dev/full", "--log-verbose"]])
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_streams_and_log_files_that_take_nothing(tmp_path, start, options, streams):
    repository = write_model(tmp_path / "models", model=TALKER)
    os.mkfifo(tmp_path / "fifo")
    running = start(repository, *options, streams=streams, cwd=tmp_path)
    assert [running.infer() for _ in range(8)] == 8 * [[1]]
    assert running.stop()[0] == 0


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_stop_takes_no_longer_because_nobody_reads(tmp_path, start):
    reader, writer = full_pipe()
    repository = write_model(tmp_path, model=TALKER)
    running = start(repository, "--log-file=-", "--drain-timeout=5", stdout=writer, stderr=writer)
    os.close(writer)
    assert [running.infer() for _ in range(100)] == 100 * [[1]]

    def hang():
        with contextlib.suppress(OSError):  # the server ends
            running.infer(9)

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(1)
    code, seconds = running.stop()
    thread.join()
    reader.close()
    assert code == 0
    assert seconds <= 5 + 5
    report(
        "SIGTERM while nobody reads the log and a request hangs",
        {"requests": 100, "hung": 0, "drain_timeout_s": 5, "exit_s": round(seconds, 1)},
    )


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_3000_trickling_connections_to_the_health_port(tmp_path, start):
    with (tmp_path / "log").open("w") as log:
        running = start(ROOT / "model_repository", "--config-name=cpu", before="ulimit -n 1024", stdout=log, stderr=log)
    process = psutil.Process(running.process.pid)
    before = process.memory_info().rss
    arguments = [str(running.ports["health"]), "3000", "60", "2"]
    attack = subprocess.Popen(
        [sys.executable, ROOT / "tests/tricklers.py", *arguments], stdout=subprocess.PIPE, text=True
    )
    answers, peak, files = [], before, 0
    while attack.poll() is None:
        started = time.monotonic()
        answers.append((running.ready()[0], time.monotonic() - started))
        peak, files = max(peak, process.memory_info().rss), max(files, process.num_fds())
        time.sleep(0.05)
    opened = int(attack.communicate()[0])
    assert running.stop()[0] == 0
    slowest = max(seconds for _, seconds in answers)
    assert {status for status, _ in answers} == {200}
    assert slowest <= 1
    assert peak - before < 30e6
    assert "Traceback" not in (tmp_path / "log").read_text()
    report(
        "3,000 trickling connections to the health port for a minute, 1,024 files",
        {
            "connections": opened,
            "probes": len(answers),
            "slowest_probe_ms": round(1000 * slowest),
            "open_files_max": files,
            "memory_grown_MB": round((peak - before) / 1e6, 1),
        },
    )


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_1100_idle_connections(tmp_path, start):
    with (tmp_path / "log").open("w") as log:
        running = start(
            ROOT / "model_repository", "--config-name=cpu", before="ulimit -Sn 1024", stdout=log, stderr=log
        )
    server = running.server.pid
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(1100):
                stack.enter_context(socket.create_connection(("127.0.0.1", running.ports["http"]), timeout=20))
            answers = []
            for _ in range(60):
                answers.append(running.ready()[0])
                time.sleep(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert running.server.pid == server
    assert running.stop()[0] == 0
    assert set(answers) == {200}
    assert (tmp_path / "log").read_text().count("event=ready") == 1
    report(
        "1,100 idle connections to the HTTP port for a minute, soft limit of 1,024 files",
        {"connections": 1100, "probes": len(answers), "not_ready": 0, "restarts": 0},
    )


def test_ipv6(tmp_path):
    repository = write_model(tmp_path / "models")
    with supervised(tmp_path, "--host=::1", "--monitor-host=::", repository=repository, config_name=None) as running:
        said = running.announced
        assert all(said[name].startswith("[::1]:") for name in ("http", "grpc"))
        assert all(said[name].startswith("http://[::1]:") for name in ("metrics", "health"))
        assert running.probe("ready")[0] == 200
        port = said["health"].rpartition(":")[2]
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=20).status == 200  # :: is IPv4 too
        assert b"nv_inference_count" in urllib.request.urlopen(said["metrics"], timeout=20).read()
        for library, protocol in ((tritonclient.http, "http"), (tritonclient.grpc, "grpc")):
            with library.InferenceServerClient(said[protocol]) as client:
                assert client.is_model_ready("identity")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--host=192.0.2.1", "--host 192.0.2.1: this machine has no such address"),
        ("--monitor-host=2001:db8::1", "--monitor-host 2001:db8::1: this machine has no such address"),
        ("--host=127.0.0.1:8000", "--host '127.0.0.1:8000': neither an IP address nor a name that has one"),
        ("--host=fe80::1", "--host fe80::1: Triton cannot listen on a link-local address; :: is all addresses"),
    ],
)
def test_an_address_that_cannot_be_listened_on(tmp_path, option, message):
    repository = write_model(tmp_path)
    ports = [f"--{protocol}-port=0" for protocol in HOSTS]
    command = [*PROGRAM, "--model-repository", str(repository), *ports, option]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == f"m2f serve: {message}"


def test_a_low_hard_limit_of_files_is_told(tmp_path):
    words = ["sh", "-c", 'ulimit -n 1024; exec "$@"', "sh", *PROGRAM, "--model-repository", str(tmp_path / "no")]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    told, error = result.stderr.splitlines()
    assert told.endswith(" event=few_files limit=1024 wanted=8192")
    assert error.startswith("m2f serve: ")
    assert result.returncode == 1


def test_an_export_of_before_exports_had_names_is_told(tmp_path):
    (tmp_path / "export.json").write_text("{}")
    command = [*PROGRAM, "--model-repository", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "event=old_layout" in result.stderr
    assert f"m2f export with the same arguments and --repository {tmp_path}" in result.stderr
