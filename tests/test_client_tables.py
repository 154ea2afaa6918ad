"""The HTML of the page of `m2f demo`."""

import re

import numpy as np
from page_tables import cells

from m2f_client.fake import result_of
from m2f_client.page.tables import instances_table, latency_table, notice
from m2f_client.page.timed_client import TimedAnswer
from m2f_client.step_times import StepTime

RESULT = result_of(np.ones((2, 4, 6), bool), labels=[1, 0], scores=[0.9, 0.5])


def test_a_row_an_instance():
    table = instances_table(RESULT, ["dog", "<b>cat"])
    assert cells(table) == [
        ["&lt;b&gt;cat", "0.900", "0", "0", "6", "4", "24"],
        ["dog", "0.500", "0", "0", "6", "4", "24"],
    ]
    assert re.findall(r"<th [^>]*>([^<]*)", table) == ["class", "score", "x1", "y1", "x2", "y2", "area"]
    assert "2 instances" in table
    assert "in 6 x 4 pixels" in table


def test_nothing_found():
    table = instances_table(result_of(np.zeros((0, 4, 6), bool)), None)
    assert "0 instances" in table
    assert cells(table) == []


def test_what_no_step_has_spent_is_the_rest():
    steps = (StepTime("mask2former_engine", 30.0, 1.0), StepTime("other", 10.0, 0.5))
    assert cells(latency_table(TimedAnswer(RESULT, 50.0, steps), "mask2former")) == [
        ["engine", "30.0", ""],
        ["other", "10.0", ""],
        ["waiting for a step", "1.5", ""],
        ["network, rest", "8.5", ""],
        ["total", "50.0", ""],
    ]


def test_without_statistics_there_is_the_total():
    assert cells(latency_table(TimedAnswer(RESULT, 50.0, ()), "parts")) == [["total", "50.0", ""]]


def test_the_steps_of_tiles_are_means_and_do_not_add_up():
    steps = (StepTime("mask2former_engine", 30.0, 1.0),)
    table = latency_table(TimedAnswer(RESULT, 100.0, steps, requests=12), "mask2former")
    assert "by step for a tile" in table
    assert cells(table) == [
        ["engine", "30.0", ""],
        ["waiting for a step", "1.0", ""],
        ["total of 12 tiles", "100.0", ""],
    ]


def test_of_many_instances_the_best_are_listed():
    table = instances_table(result_of(np.zeros((1002, 1, 1), bool), labels=[0] * 1002), None)
    assert "1002 instances" in table
    assert "the best 1000 are listed" in table
    assert len(cells(table)) == 1000


def test_a_notice_is_text():
    assert "&lt;script&gt;" in notice("<script>")
