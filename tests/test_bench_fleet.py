"""The simulated fleet: queues, choices, rolling updates and bursts do what the real ones do."""

import random
from collections import Counter

import pytest
from benchmarks.autoscaling.scaler import TARGETS
from benchmarks.fleet.scenarios import Burst, Update, burst, carried, levels, rolling_update
from benchmarks.fleet.simulation import (
    ANSWERED,
    FULL,
    LEAVING,
    Clock,
    Front,
    Replica,
    arrive,
    in_turn,
    keep_in_flight,
    least_request,
)


def front(*replicas, clock, **options):
    return Front(clock=clock, choose=in_turn(), known=list(replicas), **options)


def test_events_happen_in_their_order_and_at_their_time():
    clock, seen = Clock(), []
    for seconds in (3, 1, 2, 1):
        clock.after(seconds, lambda seconds=seconds: seen.append((clock.now, seconds)))
    clock.run(2.5)
    assert seen == [(1, 1), (1, 1), (2, 2)]
    assert clock.now == 2.5


def test_a_replica_computes_batches_and_turns_away_what_has_no_room():
    clock = Clock()
    replica = Replica(clock, 0.1)
    server = front(replica, clock=clock)
    ends = []
    for _ in range(100):
        server.send(ends.append)
    assert Counter(ends) == {FULL: 17}  # one is computed, and 82 wait
    clock.run(0.1)
    assert Counter(ends)[ANSWERED] == 1
    clock.run(0.1 + 0.8 + 0.001)
    assert Counter(ends)[ANSWERED] == 9
    clock.run(60)
    assert Counter(ends) == {FULL: 17, ANSWERED: 83}
    assert replica.busy_s == pytest.approx(8.3)
    assert replica.in_flight == 0
    assert [took for _, took in server.times][:2] == pytest.approx([0.1, 0.9])


def test_a_leaving_replica_refuses_new_requests_and_answers_those_it_has():
    clock = Clock()
    old, new = Replica(clock, 0.1), Replica(clock, 0.1)
    once, again = front(old, new, clock=clock), front(old, new, clock=clock, tries=2)
    once.send()
    old.leaving = True
    once.send()
    once.send()
    again.send()
    clock.run(10)
    assert once.ends == {ANSWERED: 2, FULL: 0, LEAVING: 1}
    assert again.ends == {ANSWERED: 1, FULL: 0, LEAVING: 0}
    assert (once.retried, again.retried) == (0, 1)


def test_a_request_that_all_replicas_refuse_fails_once():
    clock = Clock()
    replicas = [Replica(clock, 0.1, leaving=True) for _ in range(3)]
    server = front(*replicas, clock=clock, tries=5)
    server.send()
    assert server.ends[LEAVING] == 1
    assert server.retried == 2


def test_even_replicas_carry_their_sum():
    assert carried([0.05], balancing="in turn") == pytest.approx(20, rel=0.01)
    assert carried([0.05] * 4, balancing="in turn") == pytest.approx(80, rel=0.01)


def test_uneven_replicas_in_turn_carry_twice_the_slow_one_and_by_least_request_nearly_their_sum():
    assert carried([0.05, 0.2], balancing="in turn") == pytest.approx(10, rel=0.02)
    assert carried([0.05, 0.2], balancing="least request") > 0.95 * 25


def test_two_random_choices_give_a_slow_replica_of_two_a_quarter():
    clock = Clock()
    slow, fast = Replica(clock, 100), Replica(clock, 0.0)
    choose = least_request(random.Random(1), choices=2)
    slow.in_flight = 1
    shares = Counter(choose([slow, fast]) is slow for _ in range(10_000))
    assert shares[True] / 10_000 == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("refuses_s", "lost"), [(3.0, 62), (4.8, 95)])
def test_a_stopped_replica_of_two_loses_as_many_of_513_requests_as_docs_say(refuses_s, lost):
    """With real servers 76 of 513 were lost, while the stopped one refused for three to five seconds."""
    clock = Clock()
    stopped, other = Replica(clock, 1 / 18.7), Replica(clock, 1 / 18.7)
    server = front(stopped, other, clock=clock)
    keep_in_flight(server, 16)
    clock.run(4)
    stopped.leaving = True
    clock.run(4 + refuses_s)
    server.known.remove(stopped)
    while sum(server.ends.values()) < 513:
        clock.run(clock.now + 0.1)
    assert server.ends[LEAVING] == lost


def test_requests_arrive_at_the_rate():
    clock = Clock()
    server = front(Replica(clock, 0.001), clock=clock)
    arrive(server, random.Random(1), lambda now: 100 if now < 50 else 200, until=100)
    clock.run(101)
    assert server.ends[ANSWERED] == pytest.approx(15_000, rel=0.03)


UPDATED = {"replicas": 6, "start_s": 5}


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        ({}, True),
        ({"drain_delay_s": 2}, True),  # it leaves before the balancer notices
        ({"drain_delay_s": 6}, False),
        ({"tries": 2}, False),
        ({"tries": 2, "at_once": 3}, True),  # two of two may be leaving
        ({"tries": 4, "at_once": 3}, False),
    ],
)
def test_what_a_rolling_update_loses(how, lost):
    found = rolling_update(Update(**UPDATED, **how))
    assert (found["failed"] > 0) is lost
    assert (found["sent_again"] > 0) is ("tries" in how)
    assert found["requests"] > 1000


def test_replicas_that_are_replaced_at_once_take_less_time():
    one, three = (rolling_update(Update(**UPDATED, at_once=at_once))["minutes"] for at_once in (1, 3))
    assert one > 2.5 * three


def test_a_burst_is_answered_sooner_by_the_queue_and_by_fast_starts():
    targets = {"busy": TARGETS["busy"]}
    slow, fast, both, again = (
        burst(Burst(replicas=2, targets=by, start_s=start_s, seconds=120))
        for by, start_s in ((targets, 60), (targets, 15), (TARGETS, 15), (TARGETS, 15))
    )
    assert both["turned_away"] < fast["turned_away"] < slow["turned_away"]
    assert both["replicas_after"] > fast["replicas_after"] > 2
    assert both == again  # seeded


def test_levels_are_busy_as_their_share():
    found = levels(0.05, (0.2, 0.5, 1.5), 75, replicas=2, seed=7)
    assert [round(level["busy"], 1) for level in found] == [0.2, 0.5, 1.0]
    assert found[0]["queue_s"] < 0.05
    assert found[2]["queue_s"] > 1
