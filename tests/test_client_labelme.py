"""labelme's JSON, read as labelme's own `utils/shape.py` (6.3) does it: polygons by Pillow, masks pasted."""

import base64
import io
import json

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw

from m2f_client.fake import result_of

stacks_of_masks = hnp.arrays(bool, st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9)))


def read(shape, size):
    """Return the mask of a shape."""
    mask = np.zeros(size, np.uint8)
    if shape["shape_type"] == "mask":
        (x1, y1), (x2, y2) = shape["points"]
        mask[y1 : y2 + 1, x1 : x2 + 1] = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
        return mask > 0
    assert shape["shape_type"] == "polygon"
    assert shape["mask"] is None
    assert len(shape["points"]) > 2
    picture = Image.fromarray(mask)
    ImageDraw.Draw(picture).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
    return np.asarray(picture) > 0


@given(stacks_of_masks)
@settings(deadline=None)
def test_the_shapes_of_an_instance_are_its_mask(masks):
    assert_read_back(masks)


def test_round_things():
    rng = np.random.default_rng(0)
    masks = np.zeros((60, 50, 70), np.uint8)
    for mask in masks:
        for inside in (1, 1, 1, 0):
            centre = rng.integers(0, 70), rng.integers(0, 50)
            cv2.ellipse(mask, centre, rng.integers(0, 20, 2).tolist(), int(rng.integers(90)), 0, 360, inside, -1)
    assert_read_back(masks.astype(bool))


def assert_read_back(masks):
    document = json.loads(json.dumps(result_of(masks).to_labelme("a.jpg")))
    size = (document["imageHeight"], document["imageWidth"])
    assert size == masks.shape[1:]
    read_back = np.zeros_like(masks)
    for shape in document["shapes"]:
        read_back[int(shape["label"])] |= read(shape, size)
    assert np.array_equal(read_back, masks)
    assert all(isinstance(shape["score"], float) for shape in document["shapes"])


def test_pieces_share_a_group_and_holes_make_a_mask():
    masks = np.zeros((4, 8, 10))
    masks[0, 1:4, 1:4] = 1
    masks[1, 1:3, 1:3] = masks[1, 5:7, 5:7] = 1
    masks[2, 1:7, 2:9] = 1
    masks[2, 3:5, 4:6] = 0
    document = result_of(masks, labels=[0, 1, 0, 1]).to_labelme("sub/a.jpg", ["cat", "dog"])
    assert [(s["label"], s["shape_type"], s["group_id"]) for s in document["shapes"]] == [
        ("cat", "polygon", None),
        ("dog", "polygon", 1),
        ("dog", "polygon", 1),
        ("cat", "mask", None),  # and nothing for the empty one
    ]
    corners = [[1.5, 1.5], [1.5, 3.5], [3.5, 1.5], [3.5, 3.5]]  # centres of pixels
    assert sorted(document["shapes"][0]["points"]) == corners
    assert document["shapes"][3]["points"] == [[2, 1], [8, 6]]
    assert document["imagePath"] == "sub/a.jpg"
    assert document["imageData"] is None
    assert document["version"].startswith("5.")


def test_boxes_where_the_server_made_no_masks():
    outputs = dict(result_of(np.ones((1, 3, 4))).outputs)
    outputs["rle"] = np.array([b""], object)
    del outputs["masks"], outputs["packed_masks"]
    (shape,) = type(result_of(np.ones((1, 3, 4))))(outputs).to_labelme("a.jpg")["shapes"]
    assert (shape["shape_type"], shape["points"]) == ("rectangle", [[0.0, 0.0], [4.0, 3.0]])
