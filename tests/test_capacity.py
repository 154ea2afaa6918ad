"""`m2f capacity`: the arithmetic, the measured costs it begins with, and the tables of docs/capacity.md."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from click.testing import CliRunner

from m2f_cli.capacity import WORKLOADS, plan, shown
from m2f_cli.main import main

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/capacity.md"
SAME = 1.5  # two runs on two machines differ by less

GPU = replace(WORKLOADS["r50-gpu"], gpu_ms=10, cpu_ms=20, image_kb=125, answer_kb=12.5, memory_gb=2)


def capacity(*arguments):
    return CliRunner().invoke(main, ["capacity", *map(str, arguments)])


def test_a_gpu_for_each_replica_and_the_cores_that_it_needs():
    found = plan(700, GPU, busy=0.7, spare=1)
    assert (found.replica_most_images_s, found.replica_images_s, found.limit) == (100, 70, "GPU")
    assert (found.replicas, found.gpus) == (11, 11)
    assert (found.replica_cores, found.cores) == (3, 33)  # 2 busy cores at 100 images/s, and 30 % of headroom
    assert (found.memory_gb, found.in_mbit_s, found.out_mbit_s) == (22, 700, 70)


@pytest.mark.parametrize(
    ("cores", "most", "limit"),
    [(1, 50, "cores"), (2, 100, "GPU"), (64, 100, "GPU")],
)
def test_few_cores_keep_a_gpu_waiting(cores, most, limit):
    found = plan(10, GPU, cores=cores)
    assert (found.replica_most_images_s, found.limit, found.replica_cores) == (most, limit, cores)


def test_without_a_gpu_cores_are_the_limit():
    found = plan(100, replace(GPU, gpu_ms=0), busy=0.5, spare=0, cores=8)
    assert (found.replica_most_images_s, found.limit, found.gpus) == (400, "cores", 0)
    assert (found.replicas, found.cores) == (1, 8)


def test_a_rate_that_fits_exactly_needs_no_more():
    assert plan(140, GPU, busy=0.7, spare=0).replicas == 2
    assert plan(140.1, GPU, busy=0.7, spare=0).replicas == 3


def test_the_command_prints_what_plan_says():
    answer = capacity(700, "--gpu-ms", 10, "--cpu-ms", 20, "--memory-gb", 2, "--json")
    found = json.loads(answer.output)
    assert found["replicas"] == 11
    assert found["workload"]["gpu_ms"] == 10
    text = capacity(700, "--gpu-ms", 10, "--cpu-ms", 20).output
    assert "700 images/s of r50-gpu with your costs" in text
    assert re.search(r"replicas +11, 1 of them spare", text)
    assert json.loads(capacity(1, "--gpu-ms", 0, "--cpu-ms", 500, "--json").output)["gpus"] == 0
    assert re.search(r"GPUs +none", capacity(1, "--workload", "r50-cpu").output)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nan"], "IMAGES_PER_SECOND"),
        (["inf"], "IMAGES_PER_SECOND"),
        (["0"], "IMAGES_PER_SECOND"),
        (["many"], "IMAGES_PER_SECOND"),
        ([], "IMAGES_PER_SECOND"),
        (["1", "--gpu-ms", "-1"], "--gpu-ms"),
        (["1", "--cpu-ms", "0"], "--cpu-ms"),
        (["1", "--gpu-ms", "0"], "give --cpu-ms too"),  # the processor would compute the network
        (["1", "--workload", "r50-cpu", "--gpu-ms", "5"], "give --cpu-ms too"),  # and would no longer
        (["1", "--busy", "1.1"], "--busy"),
        (["1", "--busy", "nan"], "--busy"),
        (["1", "--cores", "0"], "--cores"),
        (["1", "--spare", "-1"], "--spare"),
        (["1", "--workload", "huge"], "--workload"),
    ],
)
def test_bad_figures_are_named(arguments, named):
    answer = capacity(*arguments)
    assert answer.exit_code == 2
    assert named in answer.output


# The costs are those that were measured


def rows(name, **wanted):
    with (RESULTS / name).open() as file:
        found = [row for row in csv.DictReader(file) if wanted.items() <= row.items()]
    assert found
    return found


def about(value):
    return pytest.approx(value, rel=SAME - 1)


@pytest.mark.parametrize(("workload", "model"), [("small-cpu", "embedded"), ("r50-cpu", "R50 512 x 512")])
def test_costs_without_a_gpu_are_those_of_the_peers(workload, model):
    work, of_service = WORKLOADS[workload], rows("peers.csv", model=model, peer="m2f", in_flight="4")
    measured = {name: median(float(row[name]) for row in of_service) for name in ("cpu_ms", "memory_mb", "bytes_sent")}
    assert work.cpu_ms == about(measured["cpu_ms"])
    assert work.memory_gb == about(measured["memory_mb"] / 1e3)
    assert work.image_kb == about(measured["bytes_sent"] / 1e3)
    assert work.answer_kb == about(float(of_service[0]["bytes_answered"]) / 1e3)


@pytest.mark.parametrize(
    ("workload", "work"),
    [("small-gpu", "256 x 256, 20 queries, 4 instances"), ("r50-gpu", "800 x 1344, 100 queries, 15 instances")],
)
def test_costs_around_a_gpu_are_those_of_the_pipeline(workload, work):
    processes = [row for row in rows("pipeline.csv", work=work, dtype="FP32") if "client" not in row["process"]]
    cpu_ms = sum(float(row["user_ms"]) + float(row["system_ms"]) for row in processes)
    assert WORKLOADS[workload].cpu_ms == about(cpu_ms)


def test_the_gpu_is_that_of_gpu_check():
    check = json.loads((RESULTS / "gpu_check.json").read_text())
    served = check["a graph for each shape (R50 served: still one for all)"]
    rate = served["service: model_repository, outputs stay on the GPU"]["16 clients"]["images_per_second"]
    assert WORKLOADS["small-gpu"].gpu_ms == about(1e3 / rate)
    engine = check["one graph for all shapes"]["ONNX Runtime: fp16.onnx"]["batches"]["8"]["host_to_host_ms"]
    assert WORKLOADS["r50-gpu"].gpu_ms == about(engine / 8)


# The page


def test_the_page_shows_what_the_command_prints():
    shown_output = PAGE.read_text().partition("$ m2f capacity 100\n")[2].partition("$")[0]
    assert capacity(100).output == shown_output


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_page_has_the_figures_of_the_command(workload):
    table = PAGE.read_text().partition(f"`--workload {workload}`")[2].partition("\n\n")[2].partition("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]
    assert [line[0] for line in lines] == ["1", "100", "10,000"]
    for line in lines:
        found = plan(float(line[0].replace(",", "")), WORKLOADS[workload])
        figures = (found.replicas, found.gpus, found.cores, found.memory_gb, found.in_mbit_s, found.out_mbit_s)
        assert line[1:] == list(map(shown, figures))
