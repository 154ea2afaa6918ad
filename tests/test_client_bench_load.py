"""The load of `m2f bench`: never more than asked for, every answer counted, and an end when the server is lost."""

import io
import threading
from itertools import pairwise
from threading import Event

import numpy as np
import pytest
from PIL import Image

from m2f_client import InvalidRequest, ModelNotFound, ServerError, ServerUnavailable
from m2f_client.bench.figures import level_of
from m2f_client.bench.load import Call, Callers, Load, Question, Window
from m2f_client.bench.pictures import MOST_IMAGES, Picture, Pictures, drawn, load
from m2f_client.bench.server import Step
from m2f_client.fake import FakeTransport, result_of, stacked
from m2f_client.predict.sources import Sources
from m2f_client.step_times import Spent, StepTime

STEPS = (Step("e", "engine", "python", 1, 8, True, None, {}),)
QUESTION = Question("m", ("scores", "size"), {"keep_top_k": 3}, 5.0)
PICTURES = [Picture(name, name.encode()) for name in ("a", "bb", "ccc")]


def found(_request=None):
    return stacked([result_of(np.ones((2, 4, 6), bool))])


def loaded(handler=found, pictures=PICTURES):
    transport = FakeTransport(handler)
    return Load(transport, QUESTION, Pictures(pictures), Event()), transport


def sent(transport):
    return [request.inputs["image"][0, 0].decode() for request in transport.requests]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_as_many_in_flight_as_asked_for_and_no_more(count):
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(count)  # passed only if so many are in flight

    def slow(request):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(60)
        with lock:
            running -= 1
        return found(request)

    load, _ = loaded(slow)
    with Callers(load, count) as callers:
        for _ in range(6):
            callers.warm_up()  # one request for each caller
    assert most == count


def test_every_answer_is_counted_with_its_bytes():
    load, transport = loaded()
    with Callers(load, 2) as callers:
        callers.warm_up()
        warm = len(transport.requests)
        window = callers.work(0.05)
    assert warm == 2
    assert len(window.calls) == len(transport.requests) - warm == load.answered - warm
    assert window.failed == {}
    assert {call.received for call in window.calls} == {2 * 4 + 2 * 4}  # two scores, height and width
    assert {call.sent for call in window.calls} == {4 + 1, 4 + 2, 4 + 3}  # the length, and the image
    assert {call.side for call in window.calls} == {(4, 6)}
    assert all(0 < call.trip_s <= call.seconds for call in window.calls)
    assert window.images_per_second > 0
    assert transport.requests[0].outputs == ("scores", "size")
    assert transport.requests[0].parameters == {"keep_top_k": 3}


def test_images_take_turns():
    load, transport = loaded()
    with Callers(load, 1) as callers:
        for _ in range(6):
            callers.warm_up()
    assert sorted(sent(transport)) == ["a", "a", "bb", "bb", "ccc", "ccc"]


def test_an_image_that_is_refused_is_sent_no_more():
    def picky(request):
        if request.inputs["image"][0, 0] != b"bb":
            raise InvalidRequest("not an image")
        return found(request)

    load, transport = loaded(picky)
    load.first()
    assert load.answered == 0
    with Callers(load, 1) as callers:
        window = callers.work(0.02)
    assert load.answered == len(window.calls)
    assert window.failed == {}
    assert [picture.name for picture in load.pictures] == ["bb"]
    assert [sent(transport).count(name) for name in ("a", "ccc")] == [1, 1]
    assert load.pictures.complaints() == ["ccc, a: not an image"]


def test_a_load_ends_when_all_images_are_refused():
    def refuse(_request):
        raise InvalidRequest("unknown parameter")

    load, transport = loaded(refuse, [Picture(str(number), b"x") for number in range(5)])
    load.first()
    with Callers(load, 2) as callers:
        assert callers.work(60.0).calls == ()
    assert len(transport.requests) == 5
    assert len(load.pictures) == 0
    (complaint,) = load.pictures.complaints()
    assert complaint.endswith(" and 2 more: unknown parameter")


@pytest.mark.parametrize("error", [ServerUnavailable("gone"), ModelNotFound("no model"), ServerError("broken")])
def test_the_first_request_says_what_is_wrong(error):
    def fail(_request):
        raise error

    load, transport = loaded(fail)
    with pytest.raises(type(error), match=str(error)):
        load.first()
    assert len(transport.requests) == 1


def test_a_lost_server_ends_the_load():
    def fail(_request):
        raise ServerError("broken")

    load, transport = loaded(fail)
    with Callers(load, 4) as callers:
        window = callers.work(60.0)
    assert load.stop.is_set()
    assert isinstance(load.lost, ServerError)
    assert 4 <= len(transport.requests) <= 8
    assert window.calls == ()
    assert window.failed == {"broken": len(transport.requests)}  # without the ids of the requests


def test_failures_between_answers_are_counted_and_no_end():
    calls = 0

    def unsteady(request):
        nonlocal calls
        calls += 1
        if calls == 30:
            load.stop.set()
        if calls % 10 == 0:
            raise ServerUnavailable("the queue is full")
        return found(request)

    load, _ = loaded(unsteady)
    with Callers(load, 1) as callers:
        window = callers.work(60.0)
    assert load.lost is None
    assert window.failed == {"the queue is full": 3}
    assert len(window.calls) == 27


class TestPictures:
    def test_of_many_some_are_taken_evenly(self, tmp_path):
        names = [str(tmp_path / f"{number:03d}.png") for number in range(200)]
        for name in names:
            (tmp_path / name).write_bytes(b"x")
        taken = [picture.name for picture in load(Sources(names=names), timeout=5)]
        assert len(taken) == MOST_IMAGES
        assert taken[0] == names[0]
        assert {names.index(b) - names.index(a) for a, b in pairwise(taken)} == {3, 4}

    def test_files_are_read_and_transcoded_once(self, tmp_path):
        Image.new("RGB", (3, 2)).save(tmp_path / "a.bmp")
        (tmp_path / "b.jpg").write_bytes(b"\xff\xd8")
        first, second = load(Sources(names=[str(tmp_path / "a.bmp"), str(tmp_path / "b.jpg")]), timeout=5)
        assert first.data.startswith(b"\x89PNG")
        assert (first.transcoded, second.transcoded, second.data) == (True, False, b"\xff\xd8")

    def test_files_that_cannot_be_read_are_grouped_by_the_reason(self, tmp_path):
        names = [*(str(tmp_path / name) for name in "abcde"), "s3://x"]
        sources = Sources(names=names, refused={"s3://x": "not read"})
        pictures = load(sources, timeout=5)
        assert len(pictures) == 0
        assert pictures.complaints() == [
            f"{tmp_path}/a, {tmp_path}/b, {tmp_path}/c and 2 more: No such file or directory",
            "s3://x: not read",
        ]

    def test_without_images_one_is_drawn(self):
        (picture,) = load(Sources(), timeout=5)
        assert picture.data == drawn()
        with Image.open(io.BytesIO(picture.data)) as image:
            assert (image.format, image.size) == ("JPEG", (640, 480))


class TestFigures:
    window = Window(
        tuple(Call(seconds, seconds - 0.001, 100, 20, (3, 4), 1) for seconds in (0.01, 0.02, 0.03)),
        55.0,
        {"late": 1},
        0.5,
    )

    def level(self, model):
        after = {"e": Spent(requests=4, work_ns=8_000_000, wait_ns=40_000_000, images=4, executions=2)}
        return level_of(2, self.window, complete=True, model=model, before={}, after=after, steps=STEPS)

    def test_what_the_server_did_not_need_is_the_networks(self):
        level = self.level(Spent(requests=4, total_ns=60_000_000))
        assert (level.images, level.images_per_second, level.counted, level.failed) == (3, 55.0, 4, {"late": 1})
        assert (level.p50_ms, level.mean_ms, level.client_ms, level.trip_ms) == pytest.approx((20, 20, 1, 19))
        assert (level.server_ms, level.network_ms) == pytest.approx((15, 4))
        assert level.p99_ms == pytest.approx(29.8)
        assert level.steps == (StepTime("e", 2.0, 10.0, batch=2.0),)

    def test_without_statistics_network_and_server_are_one(self):
        level = self.level(None)
        assert (level.server_ms, level.network_ms, level.counted, level.steps) == (None, None, None, ())
        assert level.trip_ms == pytest.approx(19)
