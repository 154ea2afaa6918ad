"""The comparison with peers: unequal answers are refused, answers are read whole, and a peer's best setting counts."""

import contextlib
import socket
import threading

import numpy as np
import pytest
from benchmarks.peers import part, report
from benchmarks.peers.catalog import BARE, EMBEDDED, M2F, PEERS
from benchmarks.peers.equality import UnequalError, compare
from benchmarks.peers.wire import Answer, Wire, WireError
from pycocotools import mask as coco


def rle(*rectangle):
    """COCO's RLE of a rectangle x1 y1 x2 y2 in a picture of 100 x 100."""
    x1, y1, x2, y2 = rectangle
    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    return coco.encode(mask)


BOXES = ((10, 10, 50, 50), (12, 12, 50, 50), (60, 60, 90, 90))
FOUND = Answer([0, 0, 1], [0.9, 0.8, 0.7], [rle(*box) for box in BOXES], [list(box) for box in BOXES])


def changed(**fields):
    return [FOUND._replace(**fields)]


def test_the_order_of_equal_instances_does_not_matter():
    turned = Answer(*(field[::-1] for field in FOUND))
    equality = compare([turned], [FOUND])
    assert (equality.instances, equality.least_iou, equality.same_masks) == (3, 1.0, 1.0)
    assert equality.score_difference == 0


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(changed(labels=[0, 0, 0]), id="another class"),
        pytest.param(changed(scores=[0.9, 0.8, 0.69]), id="another score"),
        pytest.param(changed(rles=[*FOUND.rles[:2], rle(62, 60, 92, 90)]), id="a mask two pixels beside"),
        pytest.param([Answer(*(field[:2] for field in FOUND))], id="one too few"),
        pytest.param([Answer(*([*field, field[0]] for field in FOUND))], id="one twice"),
        pytest.param([Answer([], [], [], [])], id="nothing"),
    ],
)
def test_other_instances_are_refused(answers):
    with pytest.raises(UnequalError):
        compare(answers, [FOUND])


def test_what_finds_nothing_is_equal_to_nothing_only():
    empty = Answer([], [], [], [])
    assert compare([empty], [empty]).instances == 0
    with pytest.raises(UnequalError):
        compare([FOUND], [empty])


def test_masks_without_pixels_are_equal():
    hidden = FOUND._replace(rles=[*FOUND.rles[:2], rle(5, 5, 5, 5)])
    assert compare([hidden], [hidden]).instances == 3


def test_an_instance_at_the_threshold_may_be_missing():
    at_threshold = FOUND._replace(scores=[0.9, 0.8, 0.5001])
    equality = compare([Answer(*(field[:2] for field in FOUND))], [at_threshold])
    assert (equality.instances, equality.at_threshold) == (2, 1)


@contextlib.contextmanager
def answering(*pieces):
    """A port that reads a request and then sends these pieces."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield Wire(server.getsockname()[1])
        thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 2\r\nContent-Length: 6\r\n\r\n"


@pytest.mark.parametrize(
    "pieces", [(HEAD + b"abcdef",), (HEAD[:30], HEAD[30:], b"abc", b"def"), (HEAD + b"ab", b"cdef")]
)
def test_an_answer_is_read_whole(pieces):
    with answering(*pieces) as wire:
        assert wire.exchange(b"POST / HTTP/1.1\r\n\r\n").body == b"abcdef"


@pytest.mark.parametrize(
    "pieces", [(HEAD + b"abc",), (HEAD[:20],), (b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno",)]
)
def test_half_an_answer_and_a_refusal_are_errors(pieces):
    with answering(*pieces) as wire, pytest.raises(WireError):
        wire.exchange(b"POST / HTTP/1.1\r\n\r\n")


def row(peer, setting, number, images_s):
    return {
        "model": EMBEDDED, "round": number, "peer": peer, "setting": setting, "in_flight": 4, "images_s": images_s,
        "p50_ms": 1.0, "p99_ms": 2.0, "cpu_ms": 3.0, "memory_mb": None, "bytes_answered": None,
    }  # fmt: skip


def test_a_peer_counts_with_its_best_setting():
    rows = [row(M2F, "as it ships", number, 60.0) for number in (1, 2, 3)]
    rows += [row("script", "one", number, rate) for number, rate in enumerate((10.0, 50.0, 20.0))]
    rows += [row("script", "two", number, rate) for number, rate in enumerate((30.0, 31.0, 33.0))]
    found = report.best(rows)[EMBEDDED, "script", 4]
    assert found["images_s"] == 31.0
    assert found["spread"] == pytest.approx(3 / 31)
    ratios = next(table for table in report.tables(rows) if table.name == f"{report.NAMES[EMBEDDED]}-ratios")
    assert ratios.lines == [["script", pytest.approx(60 / 31)]]


def test_every_peer_has_cells_and_rounds_are_interleaved():
    levels = 5
    cells = part(quick=False).cells
    assert {cell["peer"] for cell in cells} == {peer.name for peer in PEERS}
    assert all(cell["in_flight"] <= 4 for cell in cells if cell["peer"] == BARE)
    of_m2f = [number for number, cell in enumerate(cells) if (cell["peer"], cell["model"]) == (M2F, EMBEDDED)]
    assert len(of_m2f) >= 2 * levels
    assert of_m2f[levels] - of_m2f[levels - 1] > levels  # the others' turns
