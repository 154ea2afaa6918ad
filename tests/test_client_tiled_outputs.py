"""The outputs of a picture in tiles: which there are, and the semantic map."""

import numpy as np
import pytest
from PIL import Image

from m2f.contract import OUTPUTS, PANOPTIC_OUTPUTS, RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f.image import decode_image
from m2f.runs import Rect
from m2f.tiles import grid
from m2f_client import Client
from m2f_client.client_errors import InvalidRequest
from m2f_client.fake import FakeTransport, result_of
from m2f_client.tiled_outputs import SemanticMap

PLACES = np.dstack([*np.mgrid[:90, :130], np.zeros((90, 130))]).astype(np.uint8)  # each pixel has its y and x
TILE, OVERLAP = 40, 0.25
FAR = 1000


def answer(request):
    """One instance, the whole tile; and a semantic map whose class says which tile it is."""
    (png,) = request.inputs["image"].reshape(-1)
    pixels = decode_image(png, max_pixels=1 << 20)
    y, x = pixels[0, 0, :2].astype(int)
    one = result_of(np.ones((1, *pixels.shape[:2]), bool)).outputs
    maps = {"semantic": np.full(pixels.shape[:2], 1000 * y + x, np.int32)}
    return {name: array[None] for name, array in {**one, **maps}.items()}


@pytest.fixture
def fake():
    return FakeTransport(answer)


def test_each_pixel_is_that_of_the_tile_which_has_it_farthest_from_its_edges(fake):
    with Client(transport=fake) as client:
        classes = client.predict_tiled(PLACES, tile=TILE, overlap=OVERLAP, outputs=("semantic",)).semantic
    assert (classes.dtype, classes.shape) == (np.int32, PLACES.shape[:2])
    chosen, best = np.full(classes.shape, -1), np.full(classes.shape, -1)
    height, width = classes.shape
    y, x = np.mgrid[:height, :width]
    for left, top, right, bottom in (tile.rect for tile in grid(height, width, tile=TILE, overlap=OVERLAP)):
        inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        edges = [  # pixels to each edge; there is nothing beyond those of the picture
            np.where(left > 0, x - left, FAR), np.where(right < width, right - 1 - x, FAR),
            np.where(top > 0, y - top, FAR), np.where(bottom < height, bottom - 1 - y, FAR),
        ]  # fmt: skip
        distance = np.where(inside, np.minimum.reduce(edges), -1)
        best = np.maximum(best, distance)
        chosen = np.where(classes == 1000 * top + left, distance, chosen)
    assert (chosen >= 0).all()
    np.testing.assert_array_equal(chosen, best)


def test_semantic_alone_asks_for_no_instances(fake):
    with Client(transport=fake) as client:
        result = client.predict_tiled(PLACES, tile=TILE, overlap=OVERLAP, outputs=("semantic",))
    assert list(result.outputs) == ["semantic"]
    assert {request.outputs for request in fake.requests} == {("size", "semantic")}
    assert len(fake.requests) == len(grid(90, 130, tile=TILE, overlap=OVERLAP))


def test_semantic_beside_instances(fake):
    with Client(transport=fake) as client:
        result = client.predict_tiled(PLACES, tile=TILE, outputs=(*STRUCTURED_OUTPUTS, "semantic"))
        alone = client.predict_tiled(PLACES, tile=TILE)
    assert set(result.outputs) == {*STRUCTURED_OUTPUTS, "semantic"}
    for name, array in alone.outputs.items():
        np.testing.assert_array_equal(result.outputs[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (PANOPTIC_OUTPUTS, "two tiles can contradict each other"),
        (RAW_OUTPUTS, "logits belong to one run of the network"),
        (("masks", "packed_masks"), "ask for 'rle'"),
        (("depth",), "there is no such output"),
    ],
)
def test_what_is_not_available_by_tiles_is_refused_by_name(fake, names, reason):
    with Client(transport=fake) as client:
        for name in names:
            with pytest.raises(InvalidRequest, match=f"'{name}' is not available by tiles: .*{reason}"):
                client.predict_tiled(PLACES, tile=TILE, outputs=("rle", name))
    assert fake.requests == []


def test_no_outputs(fake):
    with Client(transport=fake) as client, pytest.raises(InvalidRequest, match="no outputs"):
        client.predict_tiled(PLACES, tile=TILE, outputs=())


def test_no_output_is_refused_without_a_reason(fake):
    available = (*STRUCTURED_OUTPUTS, "class_names", "semantic")
    with Client(transport=fake) as client:
        for name in (tensor.name for tensor in OUTPUTS if tensor.name not in available):
            with pytest.raises(InvalidRequest, match=f"'{name}' is not available by tiles: (?!there is no such)"):
                client.predict_tiled(PLACES, tile=TILE, outputs=(name,))


def test_a_map_that_is_too_large_is_refused_before_there_is_any():
    with pytest.raises(InvalidRequest, match=r"16385 x 16384 pixels is too large.*at most 268435456"):
        SemanticMap(Rect(0, 0, 16384, 16385))


@pytest.mark.server
def test_pictures_side_by_side_have_the_maps_that_they_have_by_themselves(server, image_files):
    pictures = []
    for data in image_files[1:5]:
        with Image.fromarray(decode_image(data, max_pixels=1 << 26)) as picture:
            pictures.append(np.asarray(picture.resize((256, 256))))
    mosaic = np.vstack([np.hstack(pictures[:2]), np.hstack(pictures[2:])])
    with Client(f"grpc://{server.grpc_url}") as client:
        found = client.predict_tiled(mosaic, tile=256, overlap=0, outputs=("semantic",)).semantic
        alone = [client.predict(picture, outputs=("semantic",)).semantic for picture in pictures]
    np.testing.assert_array_equal(found, np.vstack([np.hstack(alone[:2]), np.hstack(alone[2:])]))
    assert len(np.unique(found)) > 1


def test_a_server_that_makes_no_masks_is_said():
    fake = FakeTransport(lambda request: {**answer(request), "rle": np.array([[b""]], object)})
    message = r"tile \d+ of \d+ .*joined by their masks, and 'export_postprocess_mask' is false"
    with Client(transport=fake) as client, pytest.raises(InvalidRequest, match=message):
        client.predict_tiled(PLACES, tile=TILE)
