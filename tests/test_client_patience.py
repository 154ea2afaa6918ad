"""A server that is away in the middle of a run: the run waits, and gives up in time."""

import threading

import numpy as np
import pytest

from m2f_client import Client, InvalidRequest, ModelNotFound, ServerUnavailable
from m2f_client.fake import FakeTransport, result_of, stacked
from m2f_client.predict.patience import Patience
from m2f_client.predict.run import PredictOptions, run


class Time:
    """A clock that is also the event that a run waits for: waiting takes no time."""

    def __init__(self):
        self.now, self.waits, self.stopped = 100.0, [], False

    def __call__(self):
        return self.now

    def is_set(self):
        return self.stopped

    def wait(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def time():
    return Time()


def failing(*errors):
    """A function that raises these errors in turn, then returns its number of calls."""
    left = list(errors)

    def ask():
        if left:
            raise left.pop(0)
        return len(errors) + 1

    return ask


@pytest.mark.parametrize("kind", [ServerUnavailable, ModelNotFound])
def test_a_server_that_comes_back_is_asked_again(time, capsys, kind):
    patience = Patience(10, time, time)
    assert patience(failing(kind("restarting"), kind("restarting"))) == 3
    assert time.waits == [1, 1]
    assert patience(failing(kind("restarting"))) == 2
    assert capsys.readouterr().err == "m2f: restarting; asking again, for up to 10 s without an answer\n"


def test_it_gives_up_when_nothing_was_answered_for_too_long(time):
    patience = Patience(2.5, time, time)
    with pytest.raises(ServerUnavailable, match="gone 3"):
        patience(failing(*(ServerUnavailable(f"gone {number}") for number in range(9))))
    assert time.waits == [1, 1, 0.5]


def test_an_answer_to_another_request_begins_the_time_anew(time):
    """Of a full queue: one unlucky request does not end a run that goes on."""
    patience = Patience(2, time, time)

    def refused():
        patience(failing())
        raise ServerUnavailable("full")

    def wait(seconds):
        Time.wait(time, seconds)
        time.stopped = len(time.waits) == 50

    time.wait = wait
    with pytest.raises(ServerUnavailable):
        patience(refused)
    assert len(time.waits) == 50


def test_time_without_requests_does_not_count(time):
    patience = Patience(5, time, time)
    time.now += 1000  # a long download
    assert patience(failing(ServerUnavailable("away"))) == 2


def test_a_run_that_stops_does_not_wait(time):
    time.stopped = True
    with pytest.raises(ServerUnavailable):
        Patience(10, time, time)(failing(ServerUnavailable("away")))
    assert time.waits == []


def test_other_errors_are_raised_at_once(time):
    with pytest.raises(InvalidRequest):
        Patience(10, time, time)(failing(InvalidRequest("not an image")))
    assert time.waits == []


def test_a_run_goes_on_when_the_server_is_back(tmp_path, monkeypatch, capsys):
    """Every fifth request fails; every image is done, once, and none has failed."""
    monkeypatch.setattr(threading.Event, "wait", lambda *_: False)
    lock, calls = threading.Lock(), [0]

    def answer(_):
        with lock:
            calls[0] += 1
            if calls[0] % 5 == 0:
                raise ServerUnavailable("restarting")
        return stacked([result_of(np.ones((1, 4, 5)))])

    names = [str(tmp_path / f"{number}.png") for number in range(40)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    client = Client(transport=FakeTransport(answer, class_names=["cat"]))
    journal = tmp_path / "run.jsonl"
    assert run(client, PredictOptions(names, {}, jsonl=journal)) == 0
    assert journal.read_text().count('"instances"') == journal.read_text().count("\n") == 40
    assert capsys.readouterr().err.count("asking again") == 1
