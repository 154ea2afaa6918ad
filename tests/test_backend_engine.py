"""Networks compiled by shape: which are kept, which go, how batches are padded; images computed side by side."""

import threading
from concurrent.futures import Executor
from types import SimpleNamespace

import numpy as np
import pytest

from m2f.errors import InputError
from m2f_backend import engine as backend_engine
from m2f_backend.cores import Neighbours
from m2f_backend.engine import ByImage, ByShape, check_shapes


class Network:
    """Doubles its input, and counts its runs."""

    def __init__(self):
        self.runs = []

    def run(self, inputs):
        self.runs.append(inputs["input"].shape)
        return {"output": Value(inputs["input"] * 2)}


class Value:
    """A tensor of a library."""

    def __init__(self, array):
        self.numpy = lambda: array


@pytest.fixture
def general():
    return Network()


@pytest.fixture
def compiled():
    """The compiled networks by batch and width, in the order in which they were compiled."""
    return {}


@pytest.fixture
def engine(general, compiled):
    def compile_for(shapes):
        ((_, shape),) = shapes
        if shape[1] == 13:
            raise RuntimeError("the library does not take 13")
        return compiled.setdefault(shape, Network())

    return ByShape(compile_for, general=general, room=2)


def ask(engine, batch, width):
    pixels = np.arange(batch * width).reshape(batch, width)
    (found,) = engine.run({"input": pixels}).values()
    assert np.array_equal(found if isinstance(found, np.ndarray) else found.numpy(), pixels * 2)


def test_a_shape_is_compiled_at_its_first_use(engine, general, compiled):
    for _ in range(3):
        ask(engine, 1, 8)
    assert compiled[1, 8].runs == [(1, 8)] * 3
    assert general.runs == []


@pytest.mark.parametrize(("batch", "padded"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8)])
def test_batches_are_padded_to_few_sizes(engine, compiled, batch, padded):
    ask(engine, batch, 8)
    assert list(compiled) == [(padded, 8)]


def test_a_full_cache_takes_a_shape_that_comes_again_and_again(engine, general, compiled):
    ask(engine, 1, 8)
    ask(engine, 1, 16)
    ask(engine, 1, 8)  # so 16 has not been used for the longest time
    for _ in range(ByShape.PATIENCE):
        ask(engine, 1, 24)
    assert general.runs == [(1, 24)] * (ByShape.PATIENCE - 1)
    assert list(compiled) == [(1, 8), (1, 16), (1, 24)]
    ask(engine, 1, 8)
    assert len(compiled[1, 8].runs) == 3
    ask(engine, 1, 16)
    assert general.runs[-1] == (1, 16)


def test_many_shapes_in_turn_do_not_compile_all_the_time(engine, general, compiled):
    for width in range(20, 2020):
        ask(engine, 1, width)
    assert len(compiled) == 2
    assert len(general.runs) == 1998


def test_what_does_not_compile_runs_on_the_network_for_all(engine, general):
    for _ in range(2):
        ask(engine, 1, 13)
    assert general.runs == [(1, 13)] * 2


def test_a_shape_that_differs_is_named():
    with pytest.raises(InputError, match=r"input has the shape \(2, 5\); the network takes \(any, 4\)"):
        check_shapes({"input": np.zeros((2, 5))}, {"input": (None, 4)})


class Streams:
    """Adds one to its input; several threads may call it, and it waits until as many do."""

    def __init__(self, together):
        self.together, self.runs = threading.Barrier(together), []

    def run(self, inputs):
        self.runs.append(len(inputs["input"]))
        self.together.wait(timeout=60)
        return {"output": inputs["input"] + 1}


@pytest.mark.parametrize(
    ("count", "streams", "side_by_side"),
    [
        (1, 4, 0),
        (2, 4, 0),
        (3, 4, 3),
        (4, 4, 4),
        (5, 4, 4),
        (6, 4, 4),
        (8, 4, 8),
        (1, 2, 0),
        (3, 2, 2),
        (1, 1, 1),
        (3, 1, 3),
    ],
)
def test_images_are_computed_side_by_side(count, streams, side_by_side):
    alone, busy = Streams(1), Streams(min(side_by_side, streams) or 1)
    pixels = np.arange(count * 3).reshape(count, 3)
    (found,) = ByImage(alone, busy, streams=streams).run({"input": pixels}).values()
    assert np.array_equal(found, pixels + 1)
    assert (busy.runs, alone.runs) == ([1] * side_by_side, [1] * (count - side_by_side))


@pytest.mark.parametrize(("streams", "instances", "share"), [(4, 2, 2), (4, 3, 1), (2, 2, 1), (1, 2, 1)])
def test_an_instance_beside_another_has_its_share_of_the_streams(tmp_path, monkeypatch, streams, instances, share):
    monkeypatch.setattr(backend_engine, "Neighbours", lambda: Neighbours(tmp_path))
    alone, busy = Streams(1), Streams(share)
    engine = ByImage(alone, busy, streams=streams, instances=instances)
    with Neighbours(tmp_path).computing():
        found = engine.run({"input": np.arange(4 * share)})
    assert found["output"].tolist() == list(range(1, 4 * share + 1))
    assert (busy.runs, alone.runs) == ([1] * 4 * share, [])


def test_an_image_that_fails_is_told():
    def fail(inputs):
        if inputs["input"][0] == 2:
            raise InputError("two")
        return {"output": inputs["input"]}

    network = SimpleNamespace(run=fail)
    engine = ByImage(network, network, streams=2)
    with pytest.raises(InputError, match="two"):
        engine.run({"input": np.arange(4)})
    assert engine.run({"input": np.arange(2)})["output"].tolist() == [0, 1]


class Later(Executor):
    """Runs what was submitted when told to."""

    def __init__(self):
        self.waiting = []

    def submit(self, function, *args):
        self.waiting.append(lambda: function(*args))

    def run(self):
        for work in self.waiting:
            work()
        self.waiting.clear()


def test_while_a_shape_is_compiled_the_network_for_all_answers(general):
    compiled, later = Network(), Later()
    engine = ByShape(lambda _shapes: compiled, general=general, room=1, compiler=later)
    ask(engine, 1, 8)
    ask(engine, 1, 8)
    assert (general.runs, compiled.runs, len(later.waiting)) == ([(1, 8)] * 2, [], 1)
    later.run()
    ask(engine, 1, 8)
    assert compiled.runs == [(1, 8)]


def test_a_shape_that_was_replaced_meanwhile_is_not_compiled(general):
    made, later = [], Later()
    engine = ByShape(lambda shapes: made.append(shapes) or Network(), general=general, room=1, compiler=later)
    ask(engine, 1, 8)
    for _ in range(ByShape.PATIENCE):
        ask(engine, 1, 16)
    later.run()
    assert made == [(("input", (1, 16)),)]
