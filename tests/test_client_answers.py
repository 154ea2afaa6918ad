"""Answers of a server that is broken or hostile: each is a `ServerError`, costs little, and the next call works."""

import numpy as np
import pytest
from fake_triton import GOOD, KINDS, SCHEMES, ask, fake_triton, floats, integers, names, predict, strings

from m2f.contract import STRUCTURED_OUTPUTS
from m2f_client import AsyncClient, Client, InvalidAddress, InvalidRequest, Result, ServerError
from m2f_client.fake import FakeTransport, result_of, stacked


def check(kind, server, change):
    """Return the error of an answer that is changed; that of the same client's next call is good."""

    def wrong(client):
        change(server)
        return client.predict(b"x")

    def right(client):
        server.outputs, server.body, server.encoding = dict(GOOD), None, None
        return client.predict(b"x")

    error, result = ask(kind, [wrong, right], server.url, timeout=10)
    assert type(error) is ServerError, error
    assert error.request_id in str(error)
    assert result.masks.tolist() == [[[1, 1, 1]] * 2]
    return str(error)


BROKEN = {
    "missing": ("scores", None, "no output 'scores'"),
    "empty": ("scores", ("FP32", [0], b""), "cannot be read"),
    "short": ("scores", ("FP32", [1, 1], b"\0"), "cannot be read"),
    "another shape": ("scores", ("FP32", [1, 200_000_000], floats(0.9)), "cannot be read"),
    "negative shape": ("scores", ("FP32", [-5, -5], floats(0.9)), "cannot be read"),
    "datatype that is none": ("scores", ("XYZ", [1, 1], floats(0.9)), "cannot be read"),
    "another datatype": ("scores", ("INT32", [1, 1], integers(1)), r"'scores' .* int32 \[1\]; expected FP32 \[-1\]"),
    "fewer dimensions": ("boxes", ("FP32", [1, 4], floats(0, 0, 2, 2)), r"'boxes' .* expected FP32 \[-1, 4\]"),
    "boxes of three": ("boxes", ("FP32", [1, 1, 3], floats(0, 0, 2)), r"'boxes' .* expected FP32 \[-1, 4\]"),
    "strings that go on": ("rle", ("BYTES", [1, 1], b"\xff\xff\xff\xff"), "cannot be read"),
    "no ASCII": ("rle", ("BYTES", [1, 1], strings(b"\xff")), "not ASCII"),
    "no count": ("num_instances", ("INT32", [1, 0], b""), "'num_instances'"),
    "negative count": ("num_instances", ("INT32", [1, 1], integers(-1)), "-1 instances"),
    "fewer rows": ("num_instances", ("INT32", [1, 1], integers(2)), "'scores' .* 1 rows; there are 2 instances"),
    "no row of one": ("labels", ("INT32", [1, 0], b""), "'labels' .* 0 rows; there are 1 instances"),
    "huge label": ("labels", ("INT32", [1, 1], integers(2**31 - 1)), "'labels' .* up to 2147483647"),
    "negative size": ("size", ("INT32", [1, 2], integers(-5, -5)), "-5 x -5 pixels"),
    "no size": ("size", ("INT32", [1, 2], integers(0, 3)), "0 x 3 pixels"),
    "side": ("size", ("INT32", [1, 2], integers(1, 65536)), "1 x 65536 pixels"),
    "huge size": ("size", ("INT32", [1, 2], integers(30000, 30000)), "30000 x 30000 pixels; possible are 268435456"),
}


@pytest.fixture(scope="module", params=["http", "grpc"])
def server(request):
    with fake_triton(request.param) as started:
        yield started


@pytest.mark.parametrize(("kind", "case"), [*((Client, case) for case in BROKEN), (AsyncClient, "short")])
def test_an_output_that_is_broken(kind, server, case):
    name, tensor, message = BROKEN[case]

    def change(server):
        if tensor is None:
            del server.outputs[name]
        else:
            server.outputs[name] = tensor

    with pytest.raises(ServerError, match=message):
        raise ServerError(check(kind, server, change))


@pytest.mark.parametrize(
    ("body", "head_size"),
    [
        (b"", None),
        (b"[" * 100_000, None),
        (b"[]", None),
        (b"{}", None),
        (b'"\xff"', None),
        (b'{"outputs": [{"name": "num_instances"}]}', None),
        (b"[[[" + bytes(1 << 20), 3),  # which is not read to its end
        (b"{}", "x"),
        (b"{}", -1),
    ],
)
def test_http_bodies_that_are_no_answer(body, head_size):
    def change(server):
        server.body = body, head_size

    with fake_triton("http") as server, pytest.raises(ServerError, match=r"cannot be read|no output"):
        raise ServerError(check(Client, server, change))


@KINDS
@SCHEMES
def test_a_compressed_answer_is_not_unpacked(kind, scheme):
    def change(server):
        server.encoding = "gzip"
        server.outputs["unasked"] = ("UINT8", [1, 1 << 24], bytes(1 << 24))

    with fake_triton(scheme) as server:
        assert "ompress" in check(kind, server, change)
        if scheme == "http":  # gRPC does not show it
            assert all(headers["Accept-Encoding"] == "identity" for headers in server.headers)


@KINDS
def test_a_compressed_answer_that_was_asked_for(kind):
    with fake_triton("http") as server:
        server.encoding = "gzip"
        (result,) = ask(kind, [predict], server.url, headers={"Accept-Encoding": "gzip"})
        assert len(result) == 1


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (("INT32", [1, 1], integers(5)), "cannot be read"),
        (("BYTES", [1, 0], b""), "cannot be read"),
        (("BYTES", [1, 1], strings(b"cat,dog")), "JSON list of strings"),
        (("BYTES", [1, 1], strings(b'{"0": "cat"}')), "JSON list of strings"),
        (("BYTES", [1, 1], strings(b"[1, 2]")), "JSON list of strings"),
        (("BYTES", [1, 1], strings(b"[" * 100_000)), "JSON list of strings"),
        (("BYTES", [1, 1], strings(b"\xff")), "JSON list of strings"),
        (None, "no output 'class_names'"),
    ],
)
def test_class_names_that_are_none(tensor, message):
    with fake_triton("grpc") as server:
        del server.outputs["class_names"]
        if tensor is not None:
            server.outputs["class_names"] = tensor
        (error,) = ask(Client, [names], server.url)
    assert type(error) is ServerError
    assert message in str(error)


def faked(*results):
    return {"transport": FakeTransport(lambda _: stacked(results))}


def test_more_pixels_than_were_sent():
    def sending(height, width):
        return lambda client: client.predict(np.zeros((height, width, 3), np.uint8))

    answered = faked(result_of(np.ones((1, 6, 4))))
    result, turned, error = ask(Client, [sending(6, 4), sending(4, 6), sending(6, 3)], **answered)
    assert result.size == turned.size == (6, 4)
    assert type(error) is ServerError
    assert "6 x 4 pixels; possible are 18" in str(error)


def test_fewer_images_than_were_sent():
    answered = faked(result_of(np.ones((1, 6, 4))))
    (error,) = ask(Client, [lambda client: client.predict_batch([b"x", b"y"])], **answered)
    assert type(error) is ServerError


@KINDS
@SCHEMES
def test_errors_of_the_caller_are_not_the_servers(kind, scheme):
    url = f"{scheme}://127.0.0.1:1"
    wrong = [{"outputs": (3,)}, {"outputs": ("\udc80",)}, {"classes": "\udc80"}, {"\udc80": 1}]
    calls = [lambda client, options=options: client.predict(b"x", **options) for options in wrong]
    for error in ask(kind, calls, url) + ask(kind, [predict], url, model=3):
        assert type(error) is InvalidRequest, error
    with pytest.raises(InvalidAddress, match="too long"):
        kind(f"{scheme}://{'a' * 70}")


def test_a_closed_grpc_client_is_not_the_servers_fault():
    client = Client("grpc://127.0.0.1:1")
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.predict(b"x")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("masks", np.ones((1, 1, 2, 2), np.uint8)),
        ("masks", np.ones((1, 1, 1, 3), np.uint8)),
        ("packed_masks", np.ones((1, 1, 2, 0), np.uint8)),
        ("panoptic", np.ones((1, 2, 2), np.int32)),
        ("semantic", np.ones((1, 1, 3), np.int32)),
        ("masks", np.ones((1, 1, 2, 3), np.float32)),
        ("rle", np.array([[5]], object)),
        ("segments", np.array([["[]"]], object)),
    ],
)
def test_arrays_that_do_not_go_with_the_rest(name, array):
    answer = stacked([result_of(np.ones((1, 2, 3)))])
    assert Result.from_batch(answer, 0).masks.shape == (1, 2, 3)
    with pytest.raises(ServerError, match=f"'{name}' from the server"):
        Result.from_batch({**answer, name: array}, 0)


def test_rows_without_a_count():
    answer = stacked([result_of(np.ones((2, 2, 3)))])
    del answer["num_instances"]
    assert len(Result.from_batch(answer, 0)) == 2
    with pytest.raises(ServerError, match="'scores' from the server has 1 rows; there are 2 instances"):
        Result.from_batch({**answer, "scores": answer["scores"][:, :1]}, 0)
    unmade = {**answer, "masks": np.zeros((1, 0, 2, 3), np.uint8)}  # no masks were made
    assert len(Result.from_batch(unmade, 0)) == 2


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[1]", '[{"id": 1}]', '[{"id": "1", "category_id": 1}]'])
def test_segments_that_are_none(text):
    with pytest.raises(ServerError, match="segments from the server"):
        Result({"segments": np.array([text.encode()], object)}).segments  # noqa: B018


def test_the_good_answer_has_every_structured_output():
    assert set(GOOD) == {*STRUCTURED_OUTPUTS, "class_names"}
