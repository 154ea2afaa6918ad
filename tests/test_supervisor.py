"""The supervisor on throwaway repositories: what it does when a stub or the server dies, hangs, or is told to stop."""

import os
import re
import resource
import signal
import threading
import time
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import psutil
import pytest
from exposition import read
from fake_control import NO_ANSWER, FakeControl
from supervised import leftovers, supervised
from until import until
from watched import CONFIG, ENSEMBLE, MODEL, Asked, ask, watched, write

from m2f_backend.calls import CallError
from m2f_server import supervisor
from m2f_server.ports import bind
from m2f_server.serve_errors import (
    CrashLoopError,
    ModelLoadError,
    PortTakenError,
    ServeError,
    ServerCrashedError,
    ServerHungError,
    ShortageError,
    WornOutError,
)
from m2f_server.supervisor import Supervisor
from m2f_server.timing import Timing


@pytest.fixture
def repository(tmp_path):
    """An ensemble `public` of one step, `worker`, which does as it is told; and `alone`, which nobody uses."""
    write(tmp_path / "models", "worker", CONFIG, MODEL)
    write(tmp_path / "models", "alone", CONFIG, MODEL)
    write(tmp_path / "models", "public", ENSEMBLE)
    return tmp_path / "models"


@pytest.mark.server
def test_probes_and_a_server_that_is_killed_or_stopped(tmp_path, repository):
    log_file = tmp_path / "server.log"
    with supervised(tmp_path, f"--log-file={log_file}", repository=repository, config_name=None) as running:
        assert running.probe("live") == (200, {"state": "serving", "ready": True, "reason": "", "live": True})
        assert running.probe("ready")[0] == 200
        assert running.probe("other")[0] == 404
        for number, why in ((signal.SIGKILL, "killed by signal 9"), (signal.SIGSTOP, "stopped (SIGSTOP)")):
            began = time.time()
            os.kill(running.server.pid, number)
            ended = running.wait_for("server_ended", since=began)
            assert why in ended["why"]
            assert running.probe("live")[0] == 200
            running.wait_for("ready", since=ended["at"])
            assert ask(running) == [[24, 32]]  # on the same port
        metrics = read(running.at_health("metrics"))
        assert metrics.values("m2f_ready", model="public") == [1]
        assert metrics.values("m2f_ready") == [1, 1]  # of the server, too
        assert metrics.values("m2f_events_total", event="server_ended") == [2]
        assert metrics.values("m2f_events_total", event="stub_lost", model="worker") == [0]
    assert log_file.read_text().count("Started HTTPService") == 3


@pytest.mark.server
def test_drain_answers_what_is_in_flight_and_nothing_new(tmp_path, repository):
    with supervised(tmp_path, repository=repository, config_name=None) as running:
        request = Asked(running, b"sleep 5")
        running.process.send_signal(signal.SIGTERM)
        running.wait_for("draining", since=0)
        status, health = running.probe("ready")
        assert (status, health["state"], health["live"]) == (503, "draining", True)
        assert read(running.at_health("metrics")).values("m2f_ready") == [0, 0]
        until(lambda: "no available versions" in str(ask(running)), timeout=10)
        running.process.wait(30)
        request.join()
        assert request.answer == [[24, 32]]
        assert running.process.returncode == 0


@pytest.mark.server
def test_everything_is_served_during_the_delay_and_the_ports_are_free_when_it_says_drained(tmp_path, repository):
    """A step that dies in the delay is reloaded. A second signal ends the delay."""
    options = ("--drain-delay=1000", "--grpc-max-connection-age=60000")
    with supervised(tmp_path, *options, repository=repository, config_name=None) as running:
        assert "--grpc-max-connection-age=60000" in running.server.cmdline()
        running.process.send_signal(signal.SIGTERM)
        leaving = running.wait_for("leaving", since=0)
        assert running.probe("ready") == (
            503,
            {"state": "serving", "ready": False, "reason": "the server is told to stop", "live": True},
        )
        assert ask(running) == [[24, 32]]
        running.stubs()["worker"].kill()
        running.wait_for("reloaded", since=leaving["at"], model="worker")
        assert ask(running) == [[24, 32]]
        running.process.send_signal(signal.SIGTERM)
        running.wait_for("drained", since=0)
        for address in (running.http_url, running.grpc_url, running.at_health("").split("/")[2]):
            host, _, port = address.partition(":")
            bind("http", host, int(port)).close()  # raises PortTakenError


@pytest.mark.server
@pytest.mark.parametrize("second_signal", [False, True])
def test_a_drain_ends_in_time_or_at_a_second_signal(tmp_path, repository, second_signal):
    option = "--drain-timeout=1000" if second_signal else "--drain-timeout=0.5"
    with supervised(tmp_path, option, repository=repository, config_name=None) as running:
        request = Asked(running, b"sleep 600")
        running.process.send_signal(signal.SIGTERM)
        running.wait_for("draining", since=0)
        if second_signal:
            running.process.send_signal(signal.SIGTERM)
        running.process.wait(100)
        assert running.wait_for("drained", since=0)["all_answered"] == "False"
        request.join(10)
        assert isinstance(request.answer, str)  # an error


def guards(name):
    """The guarding processes of a server."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        found += [process] if name in words and any(word.endswith("remains.py") for word in words) else []
    return found


@pytest.mark.server
@pytest.mark.parametrize(
    "order", ["guard supervisor", "supervisor guard server stubs", "stubs server supervisor guard"]
)
def test_after_all_was_killed_the_next_start_on_the_same_ports_sweeps(tmp_path, repository, monkeypatch, order):
    """As a container's end kills; where the server is left over, it has the ports."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with supervised(tmp_path, repository=repository, config_name=None) as first:
        processes = {
            "supervisor": [psutil.Process(first.process.pid)],
            "guard": until(lambda: guards(first.name)),
            "server": [first.server],
            "stubs": list(first.stubs().values()),
        }
        name, addresses = first.name, {key: first.announced[key] for key in ("http", "grpc", "metrics", "health")}
        ports = [f"--{key}-port={re.search(r':([0-9]+)', url.split('//')[-1])[1]}" for key, url in addresses.items()]
        for part in order.split():
            for process in processes[part]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        first.process.wait()
        with supervised(tmp_path, *ports, repository=repository, config_name=None) as second:
            assert ask(second) == [[24, 32]]
            assert {key: second.announced[key] for key in addresses} == addresses
            # another server that starts at this moment may be the one that sweeps
            until(lambda: [path.name for path in temporary.iterdir()] == [second.name] and leftovers(name) == [])
    assert list(temporary.iterdir()) == []


@pytest.mark.server
def test_a_lost_guard_is_replaced_and_cleans_up_as_the_first_would_have(tmp_path, repository):
    with supervised(tmp_path, repository=repository, config_name=None) as running:
        for lost in (signal.SIGKILL, signal.SIGSTOP):
            (guard,) = until(lambda: guards(running.name))
            began = time.time()
            guard.send_signal(lost)
            running.wait_for("guard_lost", since=began)
            until(lambda guard=guard: guards(running.name) not in ([], [guard]))
        assert running.probe("ready")[0] == 200
        name = running.name
        running.process.kill()
        assert leftovers(name) == []


@pytest.mark.server
def test_a_supervisor_without_a_free_file_harms_nobody_and_looks_again(tmp_path, repository):
    with supervised(tmp_path, repository=repository, config_name=None) as running:
        server, stub = running.server.pid, running.stubs()["worker"]
        began = time.time()
        limits = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (4, limits[1]))
        stub.kill()
        assert "Too many open files" in running.wait_for("look_failed", since=began)["why"]
        time.sleep(8 * Timing().tick_s)
        assert not [event for event in running.events() if event["event"] in ("stub_lost", "server_ended")]
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, limits)
        running.wait_for("reloaded", since=began, model="worker")
        running.wait_for("ready", since=began)
        assert running.server.pid == server
        assert ask(running) == [[24, 32]]
        assert read(running.at_health("metrics")).total("m2f_events_total", event="look_failed") >= 1


@pytest.mark.server
@pytest.mark.parametrize("word", [b"crash", b"hang", b"sleep 600"])
def test_a_request_that_ends_or_hangs_its_stub_gets_an_error_and_the_next_an_answer(repository, word):
    with watched(repository) as (server, own, events, ended):
        request = Asked(server, word)
        request.join(60)
        assert "not healthy" in request.answer
        until(lambda: ("reloaded" in [name for name, _ in events]) and not own.trouble)
        assert ask(server) == [[24, 32]]
        why = next(fields["why"] for name, fields in events if name == "stub_lost" and fields["model"] == "worker")
        assert re.fullmatch(
            {
                b"crash": "exit code 3",
                b"hang": r"worker hangs: no answer in \d+ s, though requests wait for it",
                b"sleep 600": r"public does not answer within \S+ s: worker hangs",
            }[word],
            why,
        )
        assert not ended


@pytest.mark.server
@pytest.mark.more
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_stub_that_dies_after_somebody_set_the_clock_is_reloaded_once(repository, monkeypatch, hours):
    """The kernel moves the time of its boot with the clock, and psutil tells starts from that time."""
    with watched(repository) as (_, own, events, ended):
        booted = psutil.boot_time()
        monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: booted + 3600 * hours)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
        os.kill(own.stubs.of("worker")[0].pid, signal.SIGKILL)
        until(lambda: "reloaded" in [name for name, _ in events] and not own.trouble)
        time.sleep(12 * Timing().tick_s)
        assert [name for name, _ in events].count("stub_lost") == 1
        assert not ended


@pytest.mark.server
def test_a_step_may_work_on_a_large_request(repository):
    with watched(repository, longest_work_s=60.0) as (server, own, events, ended):
        assert ask(server, b"work 3") == [[24, 32]]
        until(lambda: [name for name, _ in events] == ["ready", "busy", "ready"])
        assert not own.trouble
        assert not ended


@pytest.mark.server
def test_one_of_two_instances_is_missed(tmp_path):
    write(tmp_path / "models", "worker", CONFIG.replace("count: 1", "count: 2"), MODEL)
    write(tmp_path / "models", "public", ENSEMBLE)
    with watched(tmp_path / "models") as (server, own, events, _):
        stubs = own.stubs.of("worker")
        assert [stub.instance for stub in sorted(stubs, key=lambda stub: stub.instance)] == ["worker_0_0", "worker_0_1"]
        os.kill(stubs[1].pid, signal.SIGSTOP)
        until(lambda: "reloaded" in [name for name, _ in events] and not own.trouble)
        assert len({stub.pid for stub in own.stubs.of("worker")} - {stub.pid for stub in stubs}) == 2
        assert [ask(server) for _ in range(4)] == 4 * [[[24, 32]]]
        lost = [fields for name, fields in events if name == "stub_lost"]
        assert [(fields["pid"], fields["why"]) for fields in lost] == [(str(stubs[1].pid), "stopped")]


@pytest.mark.server
def test_an_instance_is_missed_though_one_of_before_the_reload_lives(tmp_path):
    """Triton 2.51 does not end the other instances of a model of which one has died."""
    write(tmp_path / "models", "worker", CONFIG.replace("count: 1", "count: 2"), MODEL)
    write(tmp_path / "models", "public", ENSEMBLE)
    with watched(tmp_path / "models", left_behind_s=6.0) as (server, own, events, _):

        def kill(instance):
            stub = max((s for s in own.stubs.of("worker") if s.instance == instance), key=lambda s: s.started)
            os.kill(stub.pid, signal.SIGKILL)
            until(lambda: str(stub.pid) in [fields["pid"] for name, fields in events if name == "stub_lost"])
            until(lambda: not own.trouble)

        kill("worker_0_1")
        kill("worker_0_0")
        assert [ask(server) for _ in range(4)] == 4 * [[[24, 32]]]
        until(lambda: len(own.stubs.of("worker")) == 2)
        assert [ask(server) for _ in range(4)] == 4 * [[[24, 32]]]
        assert [name for name, _ in events].count("stub_lost") == 2


@pytest.mark.server
def test_a_model_that_someone_unloads_stays_away(repository):
    with watched(repository) as (server, own, events, _):
        server.control.unload("alone")
        until(lambda: ("alone", "1") not in server.control.loaded())
        time.sleep(4 * Timing().tick_s)
        assert "no available versions" in ask(server, model="alone")
        assert not own.trouble
        assert "stub_lost" not in [name for name, _ in events]


@pytest.mark.server
def test_a_repository_without_an_ensemble_is_ready_when_triton_says_so(tmp_path):
    write(tmp_path / "models", "alone", CONFIG, MODEL)
    with watched(tmp_path / "models") as (server, own, events, _):
        assert not own.trouble
        os.kill(own.stubs.of("alone")[0].pid, signal.SIGKILL)
        until(lambda: "reloaded" in [name for name, _ in events])
        assert ask(server, model="alone") == [[24, 32]]


@pytest.mark.server
def test_a_model_that_cannot_be_reloaded_takes_the_server_with_it(repository):
    with watched(repository) as (server, _, events, ended):
        (repository / "worker/1/model.py").write_text("raise ValueError('gone bad')")
        Asked(server, b"crash").join(30)
        assert isinstance(until(lambda: ended)[0], ServerHungError)
        assert "worker cannot be reloaded" in str(ended[0])
        assert "gone bad" in str(ended[0])
        assert not server.is_running()
        assert [fields["attempt"] for name, fields in events if name == "reload_failed"] == [1, 2, 3]


@pytest.mark.server
def test_a_server_that_was_mended_often_is_worn_out(repository):
    with watched(repository, most_reloads=1) as (server, own, events, ended):
        for times in (1, 2):
            Asked(server, b"crash").join(30)
            until(lambda times=times: [name for name, _ in events].count("reloaded") == times)
            until(lambda: ended or not own.trouble)
        assert isinstance(until(lambda: ended)[0], WornOutError)
        assert server.is_running()


class Ending:
    """A watch of a server that ends with an error, after it has answered right or not."""

    def __init__(self, error, *, right):
        self._error = error
        self.trouble = "" if right else "the canary fails"
        self.troubles = {"public": self.trouble}
        self.good_since = time.monotonic() if right else None

    def run(self, told_to_end, tick):
        tick()
        if self._error:
            raise self._error
        told_to_end.__self__.stop.set()

    def drain(self, **_):
        return True


def run_supervisor(monkeypatch, runs, *, alone=None, unready=None, **timing):
    """Run a supervisor on servers that end one after the other, and return what it did.

    Args:
        monkeypatch: of pytest.
        runs: error that ends each server, and whether the server answered right before; the one after them is stopped.
        alone: the control of the servers.
        unready: error of a start by its number; the first is 1.
        timing: of the supervisor.
    """
    ran = SimpleNamespace(events=[], starts=[], error=None, delays=[], restarts=None)
    left = iter(runs)
    server = SimpleNamespace(
        ports={"http": 1, "grpc": 2, "metrics": 3},
        models=["public"],
        public=["public"],
        control=alone,
        stop=lambda **_: None,
    )

    def start(**options):
        ran.starts.append(options)
        if error := (unready or {}).get(len(ran.starts)):
            raise error
        return nullcontext(server)

    def watch(*_):
        error, right = next(left, (None, True))
        if error is None:
            exposition = read(f"http://127.0.0.1:{own.health_port}/metrics")
            ran.restarts = exposition.total("m2f_restarts_total")
        return Ending(error, right=right)

    monkeypatch.setattr(supervisor, "Watch", watch)
    own = Supervisor(
        start=start,
        health_host="127.0.0.1",
        health_port=0,
        drain_timeout=1,
        announce=lambda *_: None,
        event=lambda event, **fields: ran.events.append((event, fields)),
        stop=threading.Event(),
        hasten=threading.Event(),
        timing=Timing(**{"first_delay_s": 0.001, **timing}),
    )
    try:
        own.run()
    except ServeError as error:
        ran.error = error
    ran.delays = [fields["restart_in"] for name, fields in ran.events if name == "server_ended"]
    return ran


def crash():
    return ServerCrashedError(returncode=-11, log_tail="  last words")


def wrong(error=None):
    return error or crash(), False


def right(error=None):
    return error or crash(), True


def test_a_worn_out_server_is_drained_before_the_next(monkeypatch):
    ran = run_supervisor(monkeypatch, [right(WornOutError("reloaded 101 times"))])
    assert [name for name, _ in ran.events] == ["draining", "drained", "server_ended", "draining", "drained"]


def test_servers_that_never_answer_right_are_given_up_with_the_reason(monkeypatch):
    ran = run_supervisor(monkeypatch, 9 * [wrong()], alone=FakeControl(error=NO_ANSWER))
    assert isinstance(ran.error, CrashLoopError)
    assert re.search(r"gave up: 5 servers in a row .* killed by signal 11(.|\n)*last words", str(ran.error))
    assert [fields["answers"] for name, fields in ran.events if name == "tried_alone"] == [False]
    assert len(ran.starts) == 6


def test_servers_that_requests_end_before_a_canary_are_not_given_up(monkeypatch):
    """Where none of five answered right, one that no client reaches is tried."""
    ran = run_supervisor(monkeypatch, 12 * [wrong()], alone=FakeControl())
    assert ran.error is None
    assert len(ran.delays) == 12
    apart = [start for start in ran.starts if "host" in start]
    assert len(apart) == 2
    assert {apart[0][name] for name in ("host", "monitor_host")} == {"127.0.0.1"}
    assert {apart[0][f"{protocol}_port"] for protocol in ("http", "grpc", "metrics")} == {0}


def test_servers_that_answered_right_are_started_again_for_ever(monkeypatch):
    ran = run_supervisor(monkeypatch, 100 * [right()])
    assert ran.delays == 100 * [0.001]
    assert ran.restarts == 100


def test_a_good_server_between_bad_ones_starts_the_count_anew(monkeypatch):
    ran = run_supervisor(monkeypatch, [*(4 * [wrong()]), right(), *(4 * [wrong()])])
    assert [fields["never_right"] for name, fields in ran.events if name == "server_ended"] == [
        1,
        2,
        3,
        4,
        0,
        1,
        2,
        3,
        4,
    ]
    assert ran.delays == [0.002, 0.004, 0.008, 0.016, 0.001, 0.002, 0.004, 0.008, 0.016]


def test_no_restart_waits_longer_than_is_said(monkeypatch):
    assert max(run_supervisor(monkeypatch, 4 * [wrong()], longest_delay_s=0.004).delays) == 0.004
    assert Timing().longest_delay_s == 10


def test_after_a_long_run_the_next_server_is_started_at_once(monkeypatch):
    assert run_supervisor(monkeypatch, [right()], long_run_s=0).delays == [0]


def test_servers_that_are_not_ready_in_a_row_are_given_up_without_a_trial(monkeypatch):
    taken = PortTakenError(protocol="http", host="127.0.0.1", port=1)
    ran = run_supervisor(monkeypatch, [right()], unready=dict.fromkeys(range(2, 9), taken))
    assert isinstance(ran.error, CrashLoopError)
    assert "already in use" in str(ran.error)
    assert len(ran.starts) == 6


@pytest.mark.parametrize("error", [ShortageError("too many open files"), OSError(24, "too many"), MemoryError()])
def test_a_shortage_of_the_machine_is_waited_out(monkeypatch, error):
    ran = run_supervisor(monkeypatch, [right()], unready=dict.fromkeys(range(2, 30), error))
    assert ran.error is None
    assert len(ran.delays) == 29


def test_a_first_server_that_is_not_ready_is_an_error_at_once(monkeypatch):
    ran = run_supervisor(monkeypatch, [], unready={1: ModelLoadError({"worker": "gone"})})
    assert isinstance(ran.error, ModelLoadError)
    assert len(ran.starts) == 1


def test_a_call_that_fails_ends_the_server_as_a_crash_does(monkeypatch):
    ran = run_supervisor(monkeypatch, [right(CallError("GET /v2: connection refused"))])
    assert [str(fields["why"]) for name, fields in ran.events if name == "server_ended"] == [
        "GET /v2: connection refused"
    ]
