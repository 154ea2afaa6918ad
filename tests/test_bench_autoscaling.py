"""The benchmark of autoscaling: what an autoscaler asks for, and what is made of Prometheus' answers."""

import json

import pytest
from benchmarks import autoscaling, fleet
from benchmarks.autoscaling import measure
from benchmarks.autoscaling.scaler import Autoscaler, wanted


@pytest.mark.parametrize(
    ("value", "replicas", "want"),
    [
        (0.7, 2, 2),
        (0.76, 2, 2),  # within a tenth of the target
        (0.78, 2, 3),
        (0.64, 4, 4),
        (0.35, 4, 2),
        (1.0, 4, 6),
        (0.0, 4, 0),
    ],
)
def test_replicas_with_which_the_average_is_at_the_target(value, replicas, want):
    assert wanted(value, 0.7, replicas=replicas) == want


def test_the_metric_that_wants_most_decides():
    scaler = Autoscaler(targets={"busy": 0.7, "queue_s": 0.5})
    assert scaler.ask(0, {"busy": 0.7, "queue_s": 1.0}, replicas=4) == 8
    assert scaler.ask(400, {"busy": 1.0, "queue_s": 0.1}, replicas=4) == 6


def test_the_number_grows_by_four_or_doubles_at_most_and_stays_within_its_bounds():
    scaler = Autoscaler(targets={"queue_s": 0.5}, least=2, most=20)
    asked = [2]
    for look in range(5):
        asked.append(scaler.ask(15.0 * look, {"queue_s": 50.0}, replicas=asked[-1]))
    assert asked == [2, 6, 12, 20, 20, 20]
    assert Autoscaler(least=2).ask(0, {"busy": 0.0, "queue_s": 0.0}, replicas=5) == 2


def test_a_recommendation_holds_for_five_minutes():
    scaler = Autoscaler(targets={"busy": 0.7}, least=1)
    assert scaler.ask(0, {"busy": 1.4}, replicas=4) == 8
    assert scaler.ask(300, {"busy": 0.1}, replicas=8) == 8
    assert scaler.ask(301, {"busy": 0.1}, replicas=8) == 2


def test_an_average_needs_a_value_of_each_server():
    series = {"a": [(15.0, 0.5), (30.0, 1.0)], "b": [(30.0, 0.5)]}
    assert measure.averages(series) == {30.0: 0.75}


def test_a_level_is_shown_by_its_last_minute():
    loads = [8, 8, 20, 20, 20, 8]
    rows = [{**dict.fromkeys(measure.SHOWN, 0), "offered_s": load, "busy": at} for at, load in enumerate(loads)]
    (table,) = measure.tables(rows)
    busy = list(measure.SHOWN).index("busy")
    assert [(line[0], line[busy]) for line in table.lines] == [(8, 1), (20, 4), (8, 5)]


@pytest.mark.parametrize("module", [autoscaling, fleet])
def test_cells_differ_and_can_be_written_down(module):
    for quick in (True, False):
        cells = [json.dumps(cell, sort_keys=True) for cell in module.part(quick=quick).cells]
        assert len(set(cells)) == len(cells) > 0
