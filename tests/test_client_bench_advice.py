"""What to turn: each rule where it applies, and where it does not; and how all of it is printed."""

import io
import json
from dataclasses import replace

import pytest
from bench_figures import IMAGES, STEPS, level, measured, times
from rich.console import Console

from m2f_client.bench.advice import advise
from m2f_client.bench.report import as_json, show

IDLE = {"steps": times(engine=(0, 5)), "mean_ms": 50.0, "network_ms": 1.0}  # nothing that takes most of a call
GPU = replace(STEPS["engine"], runs_on="tensorrt_plan")


def alone(**changes):
    return level(1, 33.0, **changes)


CASES = {  # the benchmark; a text of the one advice, or None for no advice
    "one level, nothing stands out": (measured(alone()), None),
    "no answer": (measured(), None),
    "the throughput is at its best early": (
        measured(level(1, 30.0, **IDLE), level(4, 40.0, **IDLE), level(8, 41.0, **IDLE)),
        "Keep 4 requests in flight",
    ),
    "levels in any order": (
        measured(level(8, 41.0, **IDLE), level(4, 40.0, **IDLE), level(1, 30.0, **IDLE)),
        "Keep 4 requests in flight",
    ),
    "it still grows": (
        measured(level(1, 30.0, **IDLE), level(4, 60.0, **IDLE)),
        "Keep more requests in flight, and measure again",
    ),
    "it grows a little": (measured(level(4, 30.0, **IDLE), level(8, 32.5, **IDLE)), None),
    "the engine on a processor": (measured(level(8, 37.0)), "precision bfloat16 of m_engine on a processor with AMX"),
    "an engine of half precision": (
        measured(level(8, 37.0), steps={"engine": replace(STEPS["engine"], parameters={"precision": "bfloat16"})}),
        "more cores, a smaller --size of m2f export, or a GPU.",
    ),
    "an engine that takes a request at a time": (
        measured(level(8, 37.0), steps={"engine": replace(GPU, batches=False)}),
        "Add dynamic_batching { } to the configuration of m_engine",
    ),
    "an engine on a GPU": (
        measured(level(8, 37.0, steps=times(engine=(100, 50), batch=6.0)), steps={"engine": GPU}),
        "raise count in the instance_group of m_engine from 1 to 2",
    ),
    "preprocessing": (
        measured(level(8, 37.0, steps=times(preprocess=(150, 8)))),
        "Raise count in the instance_group of m_preprocess from 2 to 3, or send smaller images",
    ),
    "preprocessing that holds back for the engine": (
        measured(level(32, 37.0, steps=times(preprocess=(300, 150), engine=(380, 30)))),
        "Make the engine faster",
    ),
    "postprocessing": (
        measured(level(8, 37.0, steps=times(postprocess=(150, 8)))),
        "of m_postprocess from 1 to 2, or its parameter threads",
    ),
    "no step has most of the time": (measured(level(8, 37.0, steps=times(engine=(10, 20)))), None),
    "cores that all steps want": (
        measured(alone(), level(2, 35.0, **IDLE | {"steps": times(engine=(0, 5), postprocess=(0, 1.6))})),
        "Give the server more cores; more instances or threads would not help.",
    ),
    "a client at its limit": (measured(alone(client_cores=0.95)), "Send from several processes"),
    "a network that takes long": (measured(alone(network_ms=20.0)), "Move the client closer"),
    "a fast network beside a fast model": (measured(level(1, 400.0, network_ms=1.5, steps=())), None),
    "large answers": (
        measured(alone(network_ms=20.0, bytes_received=16e6, bytes_sent=6e5)),
        "Ask for smaller outputs: rle instead of masks.",
    ),
    "large images": (measured(alone(network_ms=20.0, bytes_sent=6e6)), "Send smaller images, or JPEG"),
    "images larger than the engine": (
        measured(alone(steps=times(preprocess=(0, 9))), images=replace(IMAGES, height=1080, width=1920)),
        "Send smaller images, if masks of their size are enough: the engine sees 256 x 256.",
    ),
    "images larger than the engine that cost little": (
        measured(alone(), images=replace(IMAGES, height=1080, width=1920)), None,
    ),
    "images of unknown size": (
        measured(alone(steps=times(preprocess=(0, 9))), images=replace(IMAGES, height=None, width=None)), None,
    ),
    "files that the client transcodes": (
        measured(alone(), images=replace(IMAGES, transcoded=2, read_ms=30.0)), "Store the images as JPEG",
    ),
    "other clients": (measured(alone(counted=150)), "Measure while nobody else uses the server."),
    "the canary": (measured(alone(counted=105)), None),
    "failures": (measured(alone(failed={"Exceeds maximum queue size": 3, "other": 1})), "Keep fewer requests"),
    "a server without statistics": (
        measured(
            level(1, 33.0, steps=(), server_ms=None, network_ms=None, counted=None),
            level(8, 37.0, steps=(), server_ms=None, network_ms=None, counted=None), blind="not for you",
        ),
        "Keep more requests in flight",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("found", "turn"), CASES.values(), ids=CASES)
def test_what_to_turn(found, turn):
    advice = advise(found)
    assert len(advice) == (turn is not None), advice
    if turn is not None:
        assert turn in advice[0].turn


def test_the_reason_has_the_figures():
    (advice,) = advise(measured(level(8, 40.0)))
    assert advice.because == (
        "with 8 in flight a request spends 194 of 200 ms (97%) at m_engine: 173 in its queue, 21 in work"
    )
    (advice,) = advise(measured(alone(failed={"the queue is full": 25})))
    assert advice.because == "25 of 125 requests failed with 1 in flight: the queue is full"


def test_cores_that_are_full_are_not_helped_by_instances():
    busy = level(8, 37.0, steps=times(postprocess=(150, 8)))
    turns = [advice.turn for advice in advise(measured(alone(), busy, on_this_machine=True))]
    assert "Give the server more cores: m_postprocess is full, and more instances would share the same cores." in turns
    assert any("This client runs on the same machine" in turn for turn in turns)
    assert not any("Raise count" in turn for turn in turns)


def printed(found, width=100):
    console = Console(file=io.StringIO(), width=width)
    show(found, advise(found), console)
    return console.file.getvalue()


def rows(text):
    return [line.split() for line in text.splitlines() if line.strip()]


def test_the_tables():
    text = printed(measured(alone(), level(8, 40.0, complete=False, failed={"late": 2})))
    assert "m at grpc://far:8001, 5 images, median 400x300, 60 kB and 0.1 ms to read each, 9.0 instances" in text
    assert "engine m_engine: python, 1 x, batches up to 8; precision=float32, threads=0\n" in text
    found = rows(text)
    assert ["1", "33.0", "30.3", "45.5", "60", "kB", "3", "kB", "100", "0"] in found
    assert ["8", "*", "40.0", "200.0", "300.0", "60", "kB", "3", "kB", "100", "2"] in found
    assert ["client", "1.0", "1.0"] in found
    assert ["network,", "front", "end", "2.0", "2.0"] in found
    assert ["engine", "waits", "3.3", "173.0"] in found
    assert ["engine", "works", "21.0", "21.0"] in found
    assert not any("batch" in row for row in found)
    assert "* cut short" in text
    assert "1. Keep fewer requests in flight" in text


def test_figures_are_whole_in_a_narrow_terminal():
    text = printed(measured(*(level(number, 1234.5, bytes_received=123.4e6) for number in (1, 2, 4, 8, 16, 32))), 40)
    assert ["1", "1234.5", "0.8", "1.2", "60", "kB", "123.4", "MB", "100", "0"] in rows(text)
    assert "\u2026" not in text


def test_batches_have_a_row():
    assert ["engine,", "images", "a", "batch", "6.0"] in rows(printed(measured(alone(steps=times(batch=6.0)))))


def test_without_statistics_the_table_says_so():
    blind = alone(steps=(), server_ms=None, network_ms=None, counted=None)
    text = printed(measured(blind, alone(), blind="not\x1b[31m for you"))
    assert "no times by step: not\ufffd[31m for you" in text
    assert ["network,", "server", "29.3", "-"] in rows(text)
    assert ["engine", "works", "-", "21.0"] in rows(text)
    assert "engine works" not in printed(measured(blind, blind="not for you"))


def test_the_json_has_all_figures():
    found = measured(alone(), level(8, 40.0))
    read = json.loads(as_json(found, advise(found)))
    assert [one["in_flight"] for one in read["levels"]] == [1, 8]
    assert read["levels"][1]["steps"][1] == {"name": "m_engine", "work_ms": 21, "wait_ms": 173.0, "batch": 1.0}
    assert read["images"]["instances"] == 9.0
    assert {one["turn"] for one in read["advice"]} == {one.turn for one in advise(found)}
