"""`predict_tiled`: requests, progress, errors; blocking and awaited alike."""

import asyncio
import io
import json
import os
import threading

import numpy as np
import pytest
from blob_server import AsyncCrowd, Crowd, answer, blob_transport, blobs, picture_of, pixels_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f.contract import STRUCTURED_OUTPUTS
from m2f.rle import encode_mask
from m2f.runs import Rect, Runs
from m2f_client import AsyncClient, Client
from m2f_client.client_errors import InvalidRequest, ServerError, UnreadableImage
from m2f_client.fake import FakeTransport, result_of, stacked
from m2f_client.tiled import Tiling

PICTURE = picture_of(90, 130, (3, 4, 12, 20), (35, 30, 48, 44), (100, 25, 110, 40), (60, 70, 75, 90), (90, 60, 104, 66))


def ask_blocking(transport, image, **arguments):
    with Client(transport=transport) as client:
        return client.predict_tiled(image, **arguments)


def ask_awaited(transport, image, **arguments):
    async def run():
        async with AsyncClient(transport=transport) as client:
            return await client.predict_tiled(image, **arguments)

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("ask", [ask_blocking, ask_awaited], ids=["blocking", "awaited"])


@BOTH
def test_instances_are_those_of_the_picture(ask):
    transport = blob_transport()
    result = ask(transport, PICTURE, tile=50, overlap=0.4)
    assert len(transport.requests) == 3 * 4
    assert result.size == (90, 130)
    assert sorted(result.rle) == sorted(encode_mask(mask) for mask in blobs(PICTURE))
    assert set(result.outputs) == set(STRUCTURED_OUTPUTS) | {"size"}
    assert result.areas.tolist() == [int(mask.sum()) for mask in result.masks]


@BOTH
@pytest.mark.parametrize(("threshold", "scores"), [(None, [0.9, 0.45]), (0.5, [0.9])])
def test_a_score_threshold_holds_for_the_mean_over_the_tiles(ask, threshold, scores):
    """Two tiles see the blob in the middle whole, and the second one does not find it."""
    pixels = picture_of(40, 60, (2, 5, 14, 15), (24, 5, 36, 15))

    def handle(request):
        seen = pixels_of(request)
        masks = blobs(seen) if seen[5, 2].all() and seen[5, 2, 0] > 127 else []
        return stacked(
            [result_of(np.array(masks, bool).reshape(-1, 40, 40), labels=[0] * len(masks), scores=[0.9] * len(masks))]
        )

    result = ask(FakeTransport(handle), pixels, tile=40, overlap=0.5, score_threshold=threshold)
    assert result.scores.tolist() == pytest.approx(scores)


@BOTH
def test_the_picture_as_a_whole_is_the_last_request_and_small(ask):
    transport = blob_transport()
    steps = []
    pixels = picture_of(9, 5001, (10, 0, 30, 9))
    ask(transport, pixels, tile=1000, whole=True, concurrency=1, progress=lambda *counts: steps.append(counts))
    sizes = [pixels_of(request).shape[:2] for request in transport.requests]
    assert sizes == [(9, 1000)] * (len(sizes) - 1) + [(5, 2501)]
    assert steps == [(done, len(sizes)) for done in range(1, len(sizes) + 1)]


@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1)
)  # factor, height, width, seed
def test_an_enlarged_mask_has_each_pixel_as_a_square(factor, height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    large = mask.repeat(factor, 0).repeat(factor, 1)
    runs = Runs.of_rle(encode_mask(mask), height, width).enlarged(factor)
    assert runs.rle(*large.shape) == encode_mask(large)
    clipped = runs.inside(Rect(0, 0, large.shape[1] - 1, large.shape[0] - 1))
    assert clipped.area == large[:-1, :-1].sum()


@BOTH
def test_one_tile_is_one_request_with_the_file_as_it_is(ask):
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "JPEG")
    outputs = (*STRUCTURED_OUTPUTS, "semantic", "size")
    transport = blob_transport()
    result = ask(transport, io.BytesIO(file.getvalue()), tile=130, outputs=outputs, whole=True)
    (request,) = transport.requests
    assert request.inputs["image"].item() == file.getvalue()
    assert set(request.outputs) == set(outputs)
    assert set(result.outputs) == set(outputs)


@pytest.mark.server
def test_one_tile_and_both_clients_against_the_real_server(server, image_files):
    outputs = (*STRUCTURED_OUTPUTS, "semantic", "size", "class_names")
    settings = {"outputs": outputs, "score_threshold": 0.1}
    with Client(server.grpc_url) as client:
        image = image_files[0]
        expected = client.predict(image, **settings)
        one = client.predict_tiled(image, tile=max(expected.size), whole=True, **settings)
        several = client.predict_tiled(image, tile=max(expected.size) // 2, **settings)

    async def run():
        async with AsyncClient(server.grpc_url) as client:
            return await client.predict_tiled(image, tile=max(expected.size) // 2, **settings)

    assert several.size == expected.size
    for result, other in ((one, expected), (asyncio.run(run()), several)):
        assert result.outputs.keys() == other.outputs.keys() == set(outputs)
        for name in outputs:
            assert result.outputs[name].dtype == other.outputs[name].dtype
            assert result.outputs[name].tobytes() == other.outputs[name].tobytes() or name in ("rle", "class_names")
        assert result.rle == other.rle
        assert list(result.outputs["class_names"]) == list(other.outputs["class_names"])


@BOTH
@pytest.mark.parametrize("tile", [50, 130])
def test_a_pipe_is_read_once(ask, tile, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG")
    writer = threading.Thread(target=pipe.write_bytes, args=(file.getvalue(),))
    writer.start()
    assert len(ask(blob_transport(), pipe, tile=tile, overlap=0.4)) == len(blobs(PICTURE))
    writer.join()


@BOTH
@pytest.mark.parametrize("concurrency", [1, 3])
def test_at_most_so_many_requests_are_in_flight(ask, concurrency):
    crowd = (Crowd if ask is ask_blocking else AsyncCrowd)(concurrency, 12)
    ask(crowd, PICTURE, tile=50, overlap=0.4, concurrency=concurrency)
    assert crowd.most == concurrency
    assert len(crowd.requests) == 12


@BOTH
def test_an_error_names_the_tile_and_ends_the_call(ask):
    asked = []

    def fail_third(request):
        asked.append(request)
        if len(asked) == 3:
            raise ServerError("out of memory")

    transport = blob_transport(fail_third)
    message = r"tile 3 of 12 \(x 53 to 103, y 0 to 50\): out of memory \(request id .*\)$"
    with pytest.raises(ServerError, match=message):
        ask(transport, PICTURE, tile=50, overlap=0.4, concurrency=1)
    assert len(asked) < 12


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 0}, "tile must be the side of a tile in pixels, 1 or more; got 0"),
        ({"tile": 10.0}, "tile must be"),
        ({"overlap": 1}, "overlap must be a part of the tile's side, 0 to less than 1; got 1"),
        ({"overlap": float("nan")}, "overlap must be"),
        ({"whole": "yes"}, "whole must be True or False; got 'yes'"),
        ({"tile": 50, "concurrency": 0}, "concurrency must be a whole number, 1 or more; got 0"),
        ({"outputs": ("rle", "masks")}, "'masks' is not available by tiles"),
    ],
)
def test_wrong_arguments_send_nothing(ask, arguments, message):
    transport = blob_transport()
    with pytest.raises(InvalidRequest, match=message):
        ask(transport, PICTURE, **arguments)
    assert not transport.requests


def test_numbers_may_be_those_of_numpy():
    tiling = Tiling(np.int64(40), np.float32(0.25), np.True_)
    assert tiling == Tiling(40, 0.25, True)
    assert json.dumps(tiling.members()) == '{"tile": 40, "overlap": 0.25, "whole": true}'


def test_too_many_tiles_are_refused():
    with pytest.raises(InvalidRequest, match="600 x 600 tiles are too many; allowed are 250000"):
        ask_blocking(blob_transport(), np.zeros((600, 600), np.uint8), tile=1)


def test_a_damaged_file_is_said_to_be_unreadable(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UnreadableImage, match="not an image"):
        ask_blocking(blob_transport(), path)


@BOTH
def test_an_answer_about_another_picture_is_refused(ask):
    transport = FakeTransport(lambda request: answer(request) | {"size": np.array([[50, 49]], np.int32)})
    with pytest.raises(ServerError, match=r"tile \d of 12 .* the answer is about a picture of \(50, 49\)"):
        ask(transport, PICTURE, tile=50, overlap=0.4)


class Silent:
    """Never answers, except that one request fails; counts requests and those that have ended."""

    url, begun, ended = "fake://silent", 0, 0

    def __init__(self, failing=None):
        self.failing = failing

    async def infer(self, _):
        self.begun += 1
        try:
            if self.begun == self.failing:
                raise ServerError("out of memory")
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    async def close(self):
        pass


def test_cancelling_cancels_the_tiles_in_flight():
    async def run():
        silent = Silent()
        async with AsyncClient(transport=silent, timeout=None) as client:
            task = asyncio.create_task(client.predict_tiled(PICTURE, tile=50, overlap=0.4, concurrency=4))
            while silent.begun < 4:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (silent.begun, silent.ended) == (4, 4)

    asyncio.run(run())


def test_an_error_cancels_the_tiles_in_flight():
    async def run():
        silent = Silent(failing=4)
        async with AsyncClient(transport=silent, timeout=None) as client:
            with pytest.raises(ServerError, match="out of memory"):
                await client.predict_tiled(PICTURE, tile=50, overlap=0.4, concurrency=4)
        assert (silent.begun, silent.ended) == (4, 4)

    asyncio.run(run())
