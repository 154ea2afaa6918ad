"""Label Studio's tasks: brushes decoded bit by bit as `@thi.ng/rle-pack` and Label Studio's converter do."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from m2f_client.converters.label_studio import encode_brush
from m2f_client.fake import result_of

masks_of_any_kind = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 13), st.integers(1, 11)),
    elements=st.integers(0, 1),
    fill=st.integers(0, 1),
)


def decode(rle, height, width):
    """Return the alpha of a brush, uint8 [H, W]."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(size):
        nonlocal place
        place += size
        return int(bits[place - size : place], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < count:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    assert len(values) == count == height * width * 4
    assert len(bits) - place < 8  # nothing more follows
    return np.array(values).reshape(height, width, 4)[:, :, 3]


@given(masks_of_any_kind)
@settings(deadline=None)
def test_a_brush_is_its_mask(mask):
    rle = encode_brush(mask)
    assert rle.dtype == np.uint8
    assert np.array_equal(decode(rle, *mask.shape), mask * 255)


@pytest.mark.parametrize("pixels", [1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 32768, 50000])
def test_runs_of_every_length(pixels):
    """Lengths of 3, 4, 8 and 16 bits, each at its limit, and runs longer than the longest."""
    mask = np.zeros((2, pixels + 1), np.uint8)
    mask[1, :pixels] = 1
    assert np.array_equal(decode(encode_brush(mask), 2, pixels + 1), mask * 255)


def test_a_task():
    masks = np.zeros((3, 6, 8))
    masks[0, 1:4, 2:5] = masks[1, 0, 0] = 1
    result = result_of(masks, scores=[0.75, 0.5, 0.25], labels=[1, 0, 1])
    task = result.to_label_studio("https://host/a.jpg", ["cat", "dog"], from_name="tag", to_name="picture")
    assert json.loads(json.dumps(task)) == task
    assert task["data"] == {"image": "https://host/a.jpg"}
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.5
    regions = prediction["result"]
    assert [(region["id"], region["score"]) for region in regions] == [("instance-0", 0.75), ("instance-1", 0.5)]
    for region, mask, name in zip(regions, masks[:2], ["dog", "cat"], strict=True):
        assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "tag", "picture")
        assert (region["original_width"], region["original_height"], region["image_rotation"]) == (8, 6, 0)
        assert region["value"]["brushlabels"] == [name]
        assert region["value"]["format"] == "rle"
        assert np.array_equal(decode(region["value"]["rle"], 6, 8), mask * 255)


def test_boxes_where_the_server_made_no_masks():
    full = result_of(np.pad(np.ones((1, 2, 4)), ((0, 0), (1, 1), (2, 2))))  # 4 x 8
    outputs = {**full.outputs, "rle": np.array([b""], object)}
    del outputs["masks"], outputs["packed_masks"]
    (region,) = type(full)(outputs).to_label_studio("a")["predictions"][0]["result"]
    assert region["type"] == "rectanglelabels"
    assert region["value"] == {
        "x": 25.0, "y": 25.0, "width": 50.0, "height": 50.0, "rotation": 0, "rectanglelabels": ["0"],
    }  # fmt: skip
