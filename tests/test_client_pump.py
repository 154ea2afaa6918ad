"""Many things at once, in order, within bounds."""

import contextlib
import threading
import time
from threading import Event

import pytest

from m2f_client.pump import in_order


def all_of(work, items, *, concurrency):
    with in_order(work, items, concurrency=concurrency, stop=Event()) as results:
        return list(results)


def test_order_whatever_takes_longest():
    def work(number):
        time.sleep(0.02 if number % 5 == 0 else 0)
        return number

    assert all_of(work, range(60), concurrency=7) == list(range(60))


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_as_many_at_once_as_asked_for_and_no_more(concurrency):
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(concurrency)  # passed only if so many are in work

    def work(_):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(60)
        with lock:
            running -= 1

    all_of(work, range(5 * concurrency), concurrency=concurrency)
    assert most == concurrency


def test_items_are_taken_by_need():
    """One slow item at the head must not pull in all the others."""
    taken, gate = 0, Event()

    def items():
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    with in_order(lambda number: number > 0 or gate.wait(60), items(), concurrency=4, stop=Event()) as results:
        threading.Timer(0.3, gate.set).start()
        assert next(results) is True
        assert taken <= 8


def test_results_come_as_soon_as_they_are_ready():
    gate = Event()

    def items():
        yield 1
        time.sleep(0.1)
        yield 2
        assert gate.wait(60)
        yield 3

    with in_order(lambda number: number, items(), concurrency=4, stop=Event()) as results:
        assert next(results) == 1  # though the window is not full
        gate.set()
        assert list(results) == [2, 3]


def test_stop_ends_what_is_in_flight_and_begins_nothing():
    stop, begun = Event(), []

    def work(number):
        begun.append(number)
        time.sleep(0.05)
        return number

    results = []
    with in_order(work, range(100), concurrency=3, stop=stop) as numbers:
        for number in numbers:
            results.append(number)
            if number == 4:
                stop.set()
                at_stop = len(begun)
    assert sorted(begun) == results
    assert len(begun) <= at_stop + 3  # those that had just looked
    assert len(begun) < 20


def test_what_work_raises_is_raised():
    def work(number):
        if number == 3:
            raise KeyError(number)
        return number

    results, begun = [], []
    with (
        pytest.raises(KeyError, match="3"),
        in_order(lambda n: begun.append(n) or work(n), range(100), concurrency=2, stop=Event()) as numbers,
    ):
        results.extend(numbers)
    assert results == [0, 1, 2]  # in its turn: what came before it is there
    at_once = len(begun)
    time.sleep(0.1)
    assert len(begun) <= at_once + 2  # those that had just looked; what waited is not begun any more
    assert at_once < 20


def test_a_block_that_fails_waits_for_the_calls_in_flight():
    """So whatever they use may be closed after it, and no thread is left to end the pool itself."""
    ended = []

    def work(number):
        time.sleep(0.05)
        ended.append(number)

    with contextlib.suppress(KeyError), in_order(work, range(100), concurrency=2, stop=Event()) as results:
        next(results)
        raise KeyError
    at_once = len(ended)
    time.sleep(0.1)
    assert len(ended) == at_once
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("m2f-predict")]
