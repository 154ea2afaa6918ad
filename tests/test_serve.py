"""`m2f serve` and `m2f_server.serve` against the real tritonserver, on throwaway repositories."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from throwaway import CONFIG, FREE_PORT_OPTIONS, FREE_PORTS, command, listening, write_model

import m2f
from m2f_backend.calls import CallError
from m2f_server import (
    LibraryMissingError,
    ModelLoadError,
    PortTakenError,
    RepositoryError,
    ServeError,
    ServerCrashedError,
    ServerNotFoundError,
    StartTimeoutError,
    locate,
    serve,
)
from m2f_server.diagnose import diagnose
from m2f_server.ports import pick_ports

pytestmark = pytest.mark.server
LOADER = "/lib64/ld-linux-x86-64.so.2"  # of glibc; the server runs on x86-64 only


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models")


def command_lines() -> list[str]:
    """The command lines of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines


def leftovers(temporary: Path) -> set[str]:
    """Folders and processes of servers started from this test, and shared memory whose server does not live."""
    lines = command_lines()
    found = {line[:80] for line in lines if str(temporary) in line} | set(map(str, temporary.iterdir()))
    for path in Path("/dev/shm").glob("m2f-*"):
        server = "-".join(path.name.split("-")[:2])
        if not any(server in line for line in lines):
            found.add(str(path))
    return found


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path_factory, monkeypatch):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # read TMPDIR again
    before = leftovers(temporary)  # of others
    yield
    deadline = time.monotonic() + 30  # the guard of a killed command needs a moment
    while (after := leftovers(temporary) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not after


def infer(url: str) -> np.ndarray:
    x = triton.InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(np.arange(3, dtype=np.float32)[None])
    with triton.InferenceServerClient(url) as client:
        return client.infer("identity", [x]).as_numpy("y")


def check_tunables(stated):
    """glibc says nothing about a name that it does not know, or about a value that it does not allow."""
    command = [LOADER, "--list-tunables"]
    lines = subprocess.check_output(command, env={"GLIBC_TUNABLES": stated}, text=True).splitlines()
    known = dict(line.split(" (")[0].split(": ") for line in lines if ": " in line)
    for name, value in (tunable.split("=") for tunable in stated.split(":")):
        assert int(known[name], 16) == int(value)


def test_serves_on_loopback_only_with_our_environment(repository):
    with serve(model_repository=repository, **FREE_PORTS) as server:
        assert server.models == ["identity"]
        assert infer(server.http_url).tolist() == [[0, 1, 2]]
        loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
        for port in server.ports.values():
            assert set(listening(port)) <= loopback
            assert listening(port)
        sees = next(line for line in server.read_log().splitlines() if line.startswith("SEES"))
        *seen, tunables = sees.split()[1:]
        assert seen == [m2f.__file__, np.__file__, os.environ.get("OMP_NUM_THREADS", "1")]
        check_tunables(tunables)
    assert not server.is_running()


def test_two_servers_at_once(repository):
    with (
        serve(model_repository=repository, **FREE_PORTS) as one,
        serve(model_repository=repository, **FREE_PORTS) as two,
    ):
        assert len({*one.ports.values(), *two.ports.values()}) == 6
        assert infer(one.http_url).tolist() == infer(two.http_url).tolist()


def test_config_name_and_a_path_with_a_space(tmp_path):
    repository = write_model(tmp_path / "my models")
    named = repository / "identity" / "configs" / "wide.pbtxt"
    named.parent.mkdir()
    named.write_text(CONFIG.replace("max_batch_size: 8", "max_batch_size: 3"))
    with serve(model_repository=repository, config_name="wide", **FREE_PORTS) as server:
        connection = http.client.HTTPConnection(server.http_url, timeout=5)
        connection.request("GET", "/v2/models/identity/config")
        assert json.loads(connection.getresponse().read())["max_batch_size"] == 3
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_says_ready_and_stops_cleanly_on_a_signal(repository, number):
    before = signal.signal(number, signal.default_int_handler)  # a background job of a shell ignores SIGINT
    try:
        process = command("--model-repository", str(repository), *FREE_PORT_OPTIONS)
    finally:
        signal.signal(number, before)
    line = process.stdout.readline()
    assert line.startswith("m2f: ready  http://127.0.0.1:")
    assert "(1 model, " in line
    process.send_signal(number)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")
    assert "event=drained all_answered=True" in errors.splitlines()[-1]


def test_a_signal_during_the_start_stops_too(tmp_path):
    repository = write_model(tmp_path, model="import time\ntime.sleep(600)\n")
    process = command("--model-repository", str(repository), *FREE_PORT_OPTIONS)
    while not any("--id=m2f-" in line and str(tmp_path) in line for line in command_lines()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 0


def test_sigkill_of_the_command_leaves_no_server(repository):
    process = command("--model-repository", str(repository), *FREE_PORT_OPTIONS, "--json")
    ready = json.loads(process.stdout.readline())
    assert ready["models"] == ["identity"]
    process.kill()
    process.communicate()
    with contextlib.suppress(psutil.NoSuchProcess):  # the rest: the nothing_stays fixture
        server = psutil.Process(ready["pid"])
        deadline = time.monotonic() + 60
        while server.status() != psutil.STATUS_ZOMBIE:  # whose child it is now is not our choice
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("protocol", ["http", "grpc", "metrics", "health"])
def test_port_taken(repository, protocol):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = [option for option in FREE_PORT_OPTIONS if protocol not in option]
        process = command("--model-repository", str(repository), *arguments, f"--{protocol}-port={port}")
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith(f"m2f serve: {protocol} port {port} on 127.0.0.1: address already in use")
    assert errors.count("\n") == 1


def test_one_port_for_two_protocols():
    with pytest.raises(PortTakenError, match="asked for twice"):
        pick_ports(hosts=dict.fromkeys(("http", "grpc"), "127.0.0.1"), ports={"http": 18999, "grpc": 18999})
    process = command("--http-port=9000", "--grpc-port=9000")
    process.communicate(timeout=60)
    assert process.returncode == 2


@pytest.mark.parametrize(("config_name", "message"), [(None, "no such folder"), ("cpu", "no such folder")])
def test_missing_repository(tmp_path, config_name, message):
    with (
        pytest.raises(RepositoryError, match=message),
        serve(model_repository=tmp_path / "no", config_name=config_name),
    ):
        pass


def test_repository_without_models_or_without_that_configuration(tmp_path, repository):
    (tmp_path / "empty" / "docs").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="no model in it"), serve(model_repository=tmp_path / "empty"):
        pass
    no_configuration = pytest.raises(RepositoryError, match=r"no model has configs/cpu\.pbtxt")
    with no_configuration, serve(model_repository=repository, config_name="cpu"):
        pass


OLD = "from m2f_server.glue import Step\n\nclass TritonPythonModel:\n    pass\n"
BROKEN = [
    # a syntax error, the model's own error, an unreadable configuration, a missing backend, an older export
    ({"model": "def x(:"}, "SyntaxError: invalid syntax"),
    ({"model": "raise ValueError('no weights\\nhere')"}, r"ValueError: no weights here \(at .*model\.py\(1\)"),
    ({"config": "input [{ nam: 3 }]"}, 'has no field named "nam"'),
    ({"config": 'platform: "tensorrt_plan"'}, "--config-name cpu"),
    ({"model": OLD}, "No module named 'm2f_server.glue' .*: export it again"),
]


@pytest.mark.parametrize(("parts", "message"), BROKEN)
def test_broken_model(tmp_path, parts, message):
    repository = write_model(tmp_path, name="broken", **parts)
    with pytest.raises(ModelLoadError, match=message) as caught, serve(model_repository=repository, **FREE_PORTS):
        pass
    assert list(caught.value.failures) == ["broken"]
    assert str(caught.value).startswith("model 'broken' did not load: ")
    assert "\n" not in str(caught.value)


def test_not_ready_in_time(tmp_path):
    repository = write_model(tmp_path, model="import time\ntime.sleep(60)\n")
    late = pytest.raises(StartTimeoutError, match=r"not ready after 0\.5 s")
    with late, serve(model_repository=repository, timeout=0.5, **FREE_PORTS):
        pass


def test_log_file_that_cannot_be_written(repository, tmp_path):
    refused = pytest.raises(ServeError, match=r"could not be started: .*No such file or directory")
    with refused, serve(model_repository=repository, log_file=tmp_path / "no" / "log", **FREE_PORTS):
        pass


def test_no_room_for_the_work_folder(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no"))
    refused = pytest.raises(ServeError, match=r"could not be started: .*No such file or directory")
    with refused, serve(model_repository=repository, **FREE_PORTS):
        pass


def test_a_log_that_somebody_moved_is_no_obstacle(repository, tmp_path):
    with serve(model_repository=repository, log_file=tmp_path / "log", **FREE_PORTS) as server:
        (tmp_path / "log").unlink()
        with pytest.raises(CallError, match="missing"):
            server.control.reload("missing")
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerCrashedError, match=r"killed by signal 9(.|\n)*Started HTTPService"):
            server.wait()


def test_verbose_passes_the_log_on(repository):
    process = command("--model-repository", str(repository), *FREE_PORT_OPTIONS, "--log-verbose")
    process.stdout.readline()
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "SEES" in errors
    assert "TRITONBACKEND_ModelInstanceInitialize" in errors


def test_a_dash_passes_the_log_on(repository):
    process = command("--model-repository", str(repository), *FREE_PORT_OPTIONS, "--log-file=-")
    process.stdout.readline()
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert "SEES" in errors
    assert "event=drained" in errors
    assert not Path("-").exists()


def test_a_crash_is_not_put_down_to_an_older_failure(repository):
    with serve(model_repository=repository, **FREE_PORTS) as server:
        with pytest.raises(CallError, match="missing"):
            server.control.reload("missing")
        write_model(repository, name="broken", model="raise ValueError('no weights')")
        with pytest.raises(CallError, match="no weights"):
            server.control.call("POST", "/v2/repository/models/broken/load", b"{}", timeout=30)
        assert "failed to load 'broken'" in server.read_log()
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerCrashedError, match=r"was killed by signal 9(.|\n)*no weights"):
            server.wait()


def test_an_error_of_the_caller_stops_the_server(repository):
    with pytest.raises(ZeroDivisionError), serve(model_repository=repository, **FREE_PORTS) as server:
        raise ZeroDivisionError
    assert not server.is_running()


def test_missing_libpython(repository, monkeypatch):
    monkeypatch.setattr(locate, "own_libpython", lambda: None)
    monkeypatch.setattr(locate, "system_libpython", lambda: None)
    missing = pytest.raises(LibraryMissingError, match=r"libpython3\.\d+\.so\.1\.0 is missing.*apt-get install")
    with missing, serve(model_repository=repository, **FREE_PORTS):
        pass


def test_no_server_at_all(repository, monkeypatch):
    monkeypatch.setattr(locate, "find_spec", lambda _: None)
    with pytest.raises(ServerNotFoundError, match="pip install"), serve(model_repository=repository, **FREE_PORTS):
        pass


def test_a_server_on_path_is_used_as_it_is(tmp_path, monkeypatch):
    other = tmp_path / "bin" / "tritonserver"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent), prepend=os.pathsep)
    assert locate.prepare(tmp_path) == locate.Installation(binary=other)


def test_diagnosis_names_the_cause_before_its_consequences():
    log = r"""E1 server.cc:7] "failed to load 'ensemble' version 1: Invalid argument: ensemble depends on 'engine'"
E1 server.cc:7] "failed to load 'engine' version 1: Internal: RuntimeError: no GPU\n\nAt:\n  /m/model.py(9): run\n"
"""
    error = diagnose(log=log, returncode=1)
    assert str(error) == (
        "model 'engine' did not load: RuntimeError: no GPU (at /m/model.py(9): run) (also not loaded: ensemble)"
    )


def test_diagnosis_of_a_folder_that_is_no_model():
    reason = "failed to open text file for read /r/.git/config.pbtxt: No such file or directory"
    log = f"""E1 model_repository_manager.cc:1460] "Poll failed for model directory '.git': {reason}"\n"""
    assert str(diagnose(log=log, returncode=1)) == (
        f"model '.git' did not load: {reason} Triton takes every folder in a repository for a model: move this one out."
    )


@pytest.mark.parametrize(
    ("log", "returncode", "kind"),
    [
        ("failed to start GRPC service: Unavailable - Socket '127.0.0.1:8001' already in use ", 1, PortTakenError),
        ("Segmentation fault", -11, ServerCrashedError),
        ("", 0, ServerCrashedError),
    ],
)
def test_diagnosis_of_other_ends(log, returncode, kind):
    assert type(diagnose(log=log, returncode=returncode)) is kind


def test_diagnosis_shows_what_was_said_before_a_stack_without_names():
    log = "\n".join(["event=error message=why", "Signal (11) received.", *(f" {n}# 0x0 in server" for n in range(20))])
    assert str(diagnose(log=log, returncode=-11)).endswith("\n  event=error message=why\n  Signal (11) received.")
