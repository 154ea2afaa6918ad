"""The harness of rolling updates, and what is lost on each way to replicas while they stop and start."""

import itertools
import json
import subprocess
import time
from types import SimpleNamespace

import pytest
from benchmarks import balance, rolling
from benchmarks.frame import UnavailableError
from benchmarks.rolling.events import EVENTS, SCALE_UP, UPDATE
from benchmarks.rolling.hosts import NAME, Hosts
from benchmarks.rolling.paths import ENVOY, PATHS, Way


@pytest.fixture
def hosts(tmp_path):
    """A name of our own, where this machine lets us have one."""
    try:
        return Hosts(tmp_path / "hosts")
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("module", [rolling, balance])
def test_cells_differ(module):
    quick, full = (module.part(quick=quick) for quick in (True, False))
    for part in (quick, full):
        cells = [json.dumps(cell, sort_keys=True) for cell in part.cells]
        assert len(set(cells)) == len(cells)
        assert all(set(part.shared) <= set(cell) for cell in part.cells)
    assert len(quick.cells) < len(full.cells)


def test_a_running_process_sees_the_addresses_that_the_name_has_now(hosts):
    hosts.set(["127.3.4.5"])
    script = "getent ahostsv4 m2f.test; read -r _; getent ahostsv4 m2f.test; echo; grep -c . /etc/hosts"
    with subprocess.Popen(
        hosts.seen_by(["sh", "-c", script]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        first = process.stdout.readline()
        hosts.set(["127.3.4.6", "127.3.4.7"])
        rest, _ = process.communicate("\n", timeout=30)
    assert "127.3.4.5" in first
    assert {line.split()[0] for line in rest.splitlines() if "STREAM" in line} >= {"127.3.4.6", "127.3.4.7"}
    assert rest.splitlines()[-1] == "3"  # localhost and the two


@pytest.mark.server
@pytest.mark.parametrize("client", [pytest.param("m2f", marks=pytest.mark.more), "tritonclient"])
def test_the_load_counts_every_answer(tmp_path, hosts, server, client):
    stage = SimpleNamespace(hosts=hosts, folder=tmp_path)
    hosts.set(["127.0.0.1"])
    port = server.grpc_url.rpartition(":")[2]
    with rolling.load(stage, Way(f"grpc://{NAME}:{port}", tls=False), in_flight=2, client=client) as outcomes:
        time.sleep(0.2)
    assert outcomes
    assert {outcome["kind"] for outcome in outcomes} == {"right"}
    assert all(outcome["began"] < outcome["ended"] for outcome in outcomes)


def test_first_traffic_is_the_first_answer_after_the_start():
    now = time.monotonic()
    assert rolling.first_traffic(lambda: [(now - 1, "a"), (now + 0.25, "b"), (now + 0.5, "c")], now) == 0.25


def test_the_tables_sum_the_runs_and_take_the_worst_times():
    cell = {
        "settings": "as deployed",
        "replicas": 2,
        "protocol": "grpc",
        "path": PATHS[0],
        "client": "m2f",
        "event": SCALE_UP,
    }
    runs = [
        cell
        | {"requests": 100, "failed": 1, "wrong": 0, "computed_twice": 2, "traffic_after_s": 0.5, "slowest_s": 1.0},
        cell | {"requests": 50, "failed": 0, "wrong": 0, "computed_twice": 0, "traffic_after_s": 1.5, "slowest_s": 0.5},
    ]
    without = runs[1] | {"settings": "without a drain delay", "event": "SIGTERM", "failed": 7, "traffic_after_s": None}
    lost, new, sums = rolling.tables([*runs, without])
    assert lost.columns[3:] == [SCALE_UP, "SIGTERM without a drain delay"]
    assert lost.lines == [[PATHS[0], "m2f", "grpc", "1 of 150", "7 of 50"]]
    assert new.lines == [[PATHS[0], "m2f", "grpc", 1.5]]
    assert sums.lines[0][6:] == [2, 150, 1, 0, 2, 1.0]


def test_the_table_of_rates_takes_the_middle_run():
    rows = [
        {"replicas": balance.ONE, "path": PATHS[0], "images_s": 19.0, "shares": "19"},
        {"replicas": balance.FOUR, "path": PATHS[0], "images_s": 78.0, "shares": "20 20 19 19"},
        {"replicas": balance.FOUR, "path": PATHS[0], "images_s": 76.0, "shares": "19 19 19 19"},
        {"replicas": balance.FOUR, "path": PATHS[0], "images_s": 40.0, "shares": "10 10 10 10"},
    ]
    (table,) = balance.tables(rows)
    assert [line[2:4] for line in table.lines] == [[19.0, 1.0], [76.0, 4.0]]


@pytest.fixture(scope="module")
def replicas():
    with rolling.staged(settings="as deployed", replicas=2) as found:
        yield found


CASES = [*itertools.product(PATHS, ["grpc"], EVENTS), *itertools.product(PATHS, ["http"], [UPDATE])]


@pytest.mark.chaos
@pytest.mark.server
@pytest.mark.parametrize(("path", "protocol", "event"), CASES)
def test_nothing_is_lost(replicas, path, protocol, event):
    (row,) = rolling.measured(replicas, path=path, protocol=protocol, event=event)
    print(row)
    assert (row["failed"], row["wrong"]) == (0, 0), row["first_error"]
    assert row["requests"] > 50
    if row["traffic_after_s"] is not None:
        assert row["traffic_after_s"] <= 2


@pytest.mark.chaos
@pytest.mark.server
def test_any_client_behind_envoy_loses_nothing(replicas):
    (row,) = rolling.measured(replicas, path=ENVOY, protocol="grpc", event=UPDATE, client="tritonclient")
    assert (row["failed"], row["wrong"]) == (0, 0), row["first_error"]
