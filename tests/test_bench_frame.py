"""The runner of the benchmarks: it goes on after a kill, survives a failing cell, and writes what it has."""

import csv
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.__main__ import main
from benchmarks.frame import Part, UnavailableError, pivot
from benchmarks.frame.load import closed_loop

ROOT = Path(__file__).parents[1]

SQUARES = [{"number": number} for number in range(4)]


def square(_stage, number):
    return [{"square": number * number}]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run toy parts as `make bench` would, and return the exit code."""

    def call(measure=square, *arguments, name="toy", **fields):
        fields = {"title": "Toy", "about": "Numbers.", "cells": SQUARES, **fields}
        part = Part(name=name, measure=measure, **fields)
        monkeypatch.setitem(sys.modules, f"benchmarks.{name}", SimpleNamespace(part=lambda **_: part))
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--results", str(tmp_path), *arguments])
        before = signal.getsignal(signal.SIGTERM)
        try:
            return main([name])
        finally:
            signal.signal(signal.SIGTERM, before)

    return call


def squares(folder):
    return [row["square"] for row in csv.DictReader((folder / "toy.csv").open())]


def test_measures_every_cell_once_and_writes_csv_markdown_and_machine(run, tmp_path):
    measured = []

    def measure(stage, number):
        measured.append(number)
        return square(stage, number)

    assert run(measure) == run(measure) == 0
    assert measured == [0, 1, 2, 3]
    assert squares(tmp_path) == ["0", "1", "4", "9"]
    text = (tmp_path / "toy.md").read_text()
    assert "| number | square |\n| --- | --- |\n| 0 | 0 |" in text
    assert "[start:all]" in text
    assert {row["name"] for row in csv.DictReader((tmp_path / "toy_machine.csv").open())} >= {"cpu", "commit", "numpy"}
    assert run(measure, "--fresh") == 0
    assert measured == [0, 1, 2, 3] * 2
    assert run(measure, "--quick") == 0
    assert squares(tmp_path / "quick") == ["0", "1", "4", "9"]


def test_a_failing_cell_is_named_and_tried_again_and_the_others_are_measured(run, tmp_path, capsys):
    def broken(_stage, number):
        return [{"square": 1 // (number - 1)}]

    assert run(broken) == 1
    assert "toy number=1: failed: ZeroDivisionError" in capsys.readouterr().err
    assert squares(tmp_path) == ["-1", "1", "0"]
    assert run() == 0
    assert squares(tmp_path) == ["-1", "1", "1", "0"]


def test_what_this_machine_cannot_measure_is_no_failure(run, capsys):
    def elsewhere(_stage, **_cell):
        raise UnavailableError("needs AMX")

    assert run(elsewhere) == 0
    assert capsys.readouterr().err.count("toy: not measured here: needs AMX (4 cells)") == 1


def test_a_cell_that_hangs_fails(run, capsys):
    assert run(lambda _stage, **_cell: signal.pause(), cells=SQUARES[:1], limit_s=0.05) == 1
    assert "TimeoutError: not done within" in capsys.readouterr().err


def test_a_part_that_cannot_be_read_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--results", str(tmp_path)])
    assert main(["no_such_part"]) == 1
    assert "no_such_part: failed: ModuleNotFoundError" in capsys.readouterr().err


def test_cells_share_a_stage_until_one_fails(run):
    events = []

    @contextmanager
    def stage(half):
        events.append(f"open {half}")
        yield half
        events.append(f"close {half}")

    def measure(stage, half, number):
        assert stage == half
        events.append(number)
        return [{"square": 1 / number}]

    cells = [{"half": number // 4, "number": number} for number in (1, 2, 0, 3, 4)]
    run(measure, cells=cells, stage=stage, shared=["half"])
    assert events == ["open 0", 1, 2, 0, "close 0", "open 0", 3, "close 0", "open 1", 4, "close 1"]


def test_a_stage_that_does_not_open_is_tried_once(run, capsys):
    opened = []

    def stage(**_):
        opened.append(1)
        raise OSError("no server [/x]")

    assert run(stage=stage) == 1
    assert len(opened) == 1
    assert capsys.readouterr().err.count("failed: OSError: no server [/x]") == 8  # as it happens, and at the end


TOY = """
import os, signal, sys
from types import SimpleNamespace
from benchmarks.__main__ import main
from benchmarks.frame import Part

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

def measure(stage, number):
    print(number, flush=True)
    if number == 2 and "HANG" in os.environ:
        signal.pause()
    return [{"square": number * number}]

part = Part(name="toy", title="Toy", about="", cells=[{"number": n} for n in range(4)], measure=measure)
sys.modules["benchmarks.toy"] = SimpleNamespace(part=lambda **_: part)
sys.exit(main(["toy"]))
"""


def toy(folder, **environment):
    """Start the command with the toy part."""
    command = [sys.executable, "-c", TOY, "--results", str(folder)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGKILL, -9), (signal.SIGINT, 130), pytest.param(signal.SIGTERM, 130, marks=pytest.mark.more)],
)
def test_goes_on_after_a_kill_and_after_ctrl_c(tmp_path, sent, code):
    with toy(tmp_path, HANG="1") as process:
        assert [process.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        process.send_signal(sent)
        message = process.stderr.read()
    assert process.returncode == code
    if sent == signal.SIGKILL:
        with (tmp_path / "journal/toy.jsonl").open("a") as journal:
            journal.write('{"cell": {"num')  # as if the kill had cut a line off
    else:
        assert "Run the same command again to go on" in " ".join(message.split())
        assert squares(tmp_path) == ["0", "1"]
    with toy(tmp_path) as process:
        assert process.stdout.read() == "2\n3\n"
    assert process.returncode == 0
    assert squares(tmp_path) == ["0", "1", "4", "9"]


def test_figures_of_other_versions_are_not_kept(run, tmp_path, capsys):
    run()
    path = tmp_path / "journal/toy.jsonl"
    facts, *cells = map(json.loads, path.read_text().splitlines())
    facts["facts"] |= {"numpy": "0.9", "commit": "another", "date": "2001-01-01"}
    cells[0]["rows"] = [{"square": 77}]
    path.write_text("".join(json.dumps(line) + "\n" for line in [facts, *cells]))
    run()
    assert "toy: begun anew, other numpy" in capsys.readouterr().err
    assert squares(tmp_path) == ["0", "1", "4", "9"]


def test_two_runs_do_not_write_to_one_folder(run, tmp_path):
    def again(stage, number):
        with toy(tmp_path) as other:
            assert "another run is writing to" in other.stderr.read()
        assert other.returncode == 1
        return square(stage, number)

    assert run(again, cells=SQUARES[:1]) == 0


@pytest.mark.more
def test_a_picture_and_own_tables(run, tmp_path):
    def product(_stage, round, number, **_cell):
        return [{"square": number * round}]

    def draw(rows, figure):
        figure.subplots().plot([row["square"] for row in rows])

    def tables(rows):
        return [pivot(rows, name="median", lines="way", columns="number", value="square", caption="Medians.")]

    cells = [{"way": way, "number": n, "round": r} for way in "ab" for n in (1, 20) for r in (1, 2, 6)]
    assert run(product, cells=cells, draw=draw, tables=tables) == 0
    assert (tmp_path / "toy.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "toy.md").read_text()
    assert "Medians.\n\n<!-- --8<-- [start:median] -->\n| way | 1 | 20 |\n| --- | --- | --- |\n| a | 2 | 40 |" in text


def test_the_load_counts_answers_and_raises_what_a_request_raises():
    sent = []
    load = closed_loop(sent.append, in_flight=2, seconds=0.01, warm_up_s=0)
    assert 10 <= load["answers"] <= len(sent) == len(set(sent))
    assert 0 <= load["p50_ms"] <= load["p99_ms"]
    with pytest.raises(ZeroDivisionError):
        closed_loop(lambda number: 1 / (number - 3), in_flight=2, seconds=60)
