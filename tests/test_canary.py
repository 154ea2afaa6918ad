"""The verdicts of a canary, on a server that is made up."""

import pytest
from fake_control import NO_ANSWER, FakeControl

from m2f_backend.calls import CallError, CannotCallError
from m2f_server.canary import Canary, Kind, Readiness
from m2f_server.timing import Timing


def canary(server, **options):
    return Canary(server, server.config("public"), **options)


VERDICTS = [
    # what the server does; the verdict; the model to blame
    ({}, Kind.SERVES, None),
    ({"error": NO_ANSWER, "answered": [{"first": 1}, {"first": 2}]}, Kind.FAILS, "second"),
    ({"error": NO_ANSWER, "answered": [{"second": 1}, {"second": 2}]}, Kind.FAILS, "first"),
    ({"error": NO_ANSWER, "answered": [{}, {"first": 1, "second": 1}]}, Kind.BUSY, None),
    ({"error": NO_ANSWER, "answered": [{}, {"first": 1}], "pending": {"first": 9}}, Kind.BUSY, None),
    ({"error": NO_ANSWER, "pending": {"first": 9}}, Kind.FAILS, "first"),
    ({"error": NO_ANSWER, "pending": {"first": 9, "second": 9}}, Kind.FAILS, "second"),  # `first` waits for it
    ({"error": NO_ANSWER, "answered": [{}, {"second": 1}], "pending": {"second": 9}}, Kind.BUSY, None),
    ({"error": CallError("Exceeds maximum queue size", status=503)}, Kind.BUSY, None),
    ({"error": CallError("image: too small", status=400)}, Kind.SERVES, None),
    ({"error": CallError("not healthy", status=500), "unready": ["public"]}, Kind.FAILS, "public"),
    ({"error": CallError("no such model", status=404)}, Kind.FAILS, None),
]


@pytest.mark.parametrize(("server", "kind", "blame"), VERDICTS)
def test_verdicts(server, kind, blame):
    verdict = canary(FakeControl(**server)).ask()
    assert (verdict.kind, verdict.blame) == (kind, blame)
    assert bool(verdict.reason) == (kind is not Kind.SERVES)
    assert str(server.get("error")) not in verdict.reason  # which anybody may read


@pytest.mark.parametrize(("longest", "last"), [(60.0, Kind.BUSY), (0.0, Kind.FAILS)])
def test_a_step_that_computes_is_busy_for_a_while(longest, last):
    used = iter(range(100, 10**6, 100))  # processor seconds, at each look
    server = FakeControl(error=NO_ANSWER, answered=12 * [{"first": 1}], pending={"first": 9})
    seconds = lambda models: dict.fromkeys(models, next(used))  # noqa: E731
    timing = Timing(first_timeout_s=1e-9, longest_work_s=longest)
    asked = canary(server, processor_seconds=seconds, timing=timing)
    verdicts = [asked.ask() for _ in range(3)]
    assert [verdict.kind for verdict in verdicts] == [Kind.BUSY, last, last]
    assert verdicts[0].reason == "public: no answer within 1e-09 s: first works on a large request"


FULL = CallError("Exceeds maximum queue size", status=503)
LASTING = [
    # how many `second` has answered by each canary that is rejected, and what waits; the last verdict, and the blame
    ([5, 5], {"second": 9}, Kind.FAILS, "second"),
    ([5, 6], {"second": 9}, Kind.BUSY, None),
    ([5, 6, 7, 7], {"second": 9}, Kind.FAILS, "second"),
    ([5, 5], {"first": 9, "second": 9}, Kind.FAILS, "second"),  # `first` waits for it
    ([5, 5], {}, Kind.BUSY, None),
    ([5, 5], {"costly": 9}, Kind.BUSY, None),  # no step of the canary's
]


@pytest.mark.parametrize(("counts", "pending", "kind", "blame"), LASTING)
def test_busy_for_long_is_hung_where_a_step_answers_nobody(counts, pending, kind, blame):
    answered = [{"second": count} for count in counts for _ in range(2)]  # before it is asked, and after
    server = FakeControl(error=FULL, answered=answered, pending=pending)
    asked = canary(server, timing=Timing(first_timeout_s=1e-9))
    *earlier, last = [asked.ask() for _ in counts]
    assert {verdict.kind for verdict in earlier} == {Kind.BUSY}
    assert (last.kind, last.blame) == (kind, blame)


def test_the_first_inference_may_take_its_time():
    server = FakeControl()
    asked = canary(server, timing=Timing(first_timeout_s=60, timeout_s=10))
    asked.ask()
    asked.ask()
    assert server.timeouts == [60, 10]


def test_a_canary_that_cannot_be_sent_is_no_verdict():
    """Of a server that is well, and of one that does not answer and cannot be looked at."""
    for server in (FakeControl(error=CannotCallError("no file")), FakeControl(error=NO_ANSWER)):
        with pytest.raises((CannotCallError, OSError)):
            canary(server, processor_seconds=no_file).ask()


def no_file(_):
    raise OSError(24, "Too many open files")


class Silent(FakeControl):
    """A server that answers no call."""

    def answered(self):
        raise NO_ANSWER

    def loaded(self):
        raise NO_ANSWER


@pytest.mark.parametrize("ask", [canary, Readiness], ids=["canary", "readiness"])
def test_a_server_that_does_not_answer_does_not_serve(ask):
    verdict = ask(Silent(error=NO_ANSWER)).ask()
    assert (verdict.kind, verdict.reason, verdict.detail) == (Kind.FAILS, "the server does not answer", str(NO_ANSWER))


def test_a_wrong_size_is_no_answer():
    verdict = canary(FakeControl(size=(7, 32))).ask()
    assert (verdict.kind, verdict.reason) == (Kind.FAILS, "public answered wrong: size [7, 32], not [24, 32]")
