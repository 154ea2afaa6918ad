"""Results of pictures with more pixels than 32 bits count: right, or refused by name. No dense mask of them is made."""

import json

import numpy as np
import pytest
import shapely

from m2f.errors import M2FError
from m2f.runs import Runs
from m2f_client.client_errors import InvalidRequest
from m2f_client.pictures.opening import open_picture
from m2f_client.predict.job import line_of, result_of
from m2f_client.predict.lines import parsed
from m2f_client.predict.parquet import write_parquet
from m2f_client.result import Result

SIDE = 100_000


def rectangle(x1, y1, x2, y2):
    columns = np.arange(x1, x2)
    return Runs(columns, np.full(len(columns), y1), np.full(len(columns), y2))


def minus(runs, y1, y2):
    """Cut a band of rows out of all columns."""
    columns = np.repeat(runs.columns, 2)
    begins, ends = np.stack([runs.begins, runs.ends * 0 + y2], 1), np.stack([runs.begins * 0 + y1, runs.ends], 1)
    return Runs(columns, begins.reshape(-1), ends.reshape(-1))


MASKS = {
    "first pixel": rectangle(0, 0, 1, 1),
    "last pixel": rectangle(SIDE - 1, SIDE - 1, SIDE, SIDE),
    "near the end": rectangle(SIDE - 30, SIDE - 50, SIDE - 10, SIDE - 20),
    "two columns from edge to edge": rectangle(70_000, 0, 70_002, SIDE),
    "two pieces": minus(rectangle(99_000, 98_000, 99_010, 99_000), 98_100, 98_900),
    "all": rectangle(0, 0, SIDE, SIDE),
}


def result(names=tuple(MASKS), side=SIDE):
    masks = [MASKS[name] for name in names]
    rle = np.empty(len(masks), object)
    rle[:] = [mask.rle(side, side) for mask in masks]
    return Result(
        {
            "scores": np.linspace(0.9, 0.5, len(masks)).astype(np.float32),
            "labels": np.arange(len(masks), dtype=np.int32),
            "queries": np.arange(len(masks), dtype=np.int32),
            "boxes": np.array([mask.box for mask in masks], np.float32),
            "areas": np.array([mask.area for mask in masks], np.int64),
            "rle": rle,
            "size": np.array([side, side], np.int32),
        }
    )


SMALL = [name for name in MASKS if name != "all"]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("side", [SIDE, 4_194_303])
def test_rle_there_and_back(mask, side):
    mask = mask.shifted(side - SIDE, side - SIDE)
    again = Runs.of_rle(mask.rle(side, side), side, side)
    assert (again.area, again.box) == (mask.area, mask.box)
    for ours, theirs in ((again.columns, mask.columns), (again.begins, mask.begins), (again.ends, mask.ends)):
        np.testing.assert_array_equal(ours, theirs)


def test_boxes_and_areas():
    found = result()
    assert found.areas.tolist() == [1, 1, 600, 200_000, 2000, 10_000_000_000]
    assert found.boxes[1].tolist() == [99_999, 99_999, 100_000, 100_000]
    assert found.boxes[5].tolist() == [0, 0, 100_000, 100_000]


def test_crops_and_polygons():
    found = result(SMALL)
    for index, name in enumerate(SMALL):
        x, y, crop = found.crop(index)
        assert (x, y, crop.sum()) == (*MASKS[name].box[:2], MASKS[name].area)
    shapes = [[shapely.Polygon(*polygon) for polygon in polygons] for polygons in result().polygons()]
    assert [len(pieces) for pieces in shapes] == [1, 1, 1, 1, 2, 1]
    assert [sum(piece.area for piece in pieces) for pieces in shapes] == result().areas.tolist()
    assert [shapely.MultiPolygon(pieces).bounds for pieces in shapes] == [tuple(box) for box in result().boxes.tolist()]
    features = json.loads(json.dumps(result().to_geojson()))["features"]
    assert features[5]["geometry"]["coordinates"][0][0][2] == [100_000, 100_000]


def test_a_journal_and_its_table(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    line = line_of("a.tif", result(), None)
    text = json.dumps({**line, "model": "m", "parameters": {}}).encode() + b"\n"
    again = result_of(parsed(text))
    assert again.boxes.tolist() == result().boxes.tolist()
    assert again.rle == result().rle
    write_parquet(tmp_path / "a.parquet", [{**line, "model": "m"}])
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    assert table["area"] == result().areas.tolist()
    assert table["bbox"][1] == [99_999, 99_999, 1, 1]
    assert table["counts"][5].encode() == result().rle[5]


def test_a_saved_result(tmp_path):
    result().save(tmp_path / "a.npz")
    again = Result.load(tmp_path / "a.npz")
    assert again.areas.tolist() == result().areas.tolist()
    assert again.rle == result().rle


def test_tables_of_supervision_and_pandas():
    frame = result().to_pandas()
    assert frame["area"].tolist() == result().areas.tolist()
    found = result(SMALL).to_supervision()
    assert found.mask.shape == (5, SIDE, SIDE)
    assert found.mask.area.tolist() == result(SMALL).areas.tolist()
    assert found.mask.bbox_xyxy.tolist() == [
        [x1, y1, x2 - 1, y2 - 1] for x1, y1, x2, y2 in result(SMALL).boxes.tolist()
    ]


def test_labelme():
    shapes = result(SMALL).to_labelme("a.tif")["shapes"]
    assert shapes[1]["points"] == [[99_999.5, 99_999.5]] * 3
    assert np.array(shapes[2]["points"]).min(axis=0).tolist() == [SIDE - 29.5, SIDE - 49.5]


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (
            lambda found: found.to_coco(1),
            "an image of 100000 x 100000 pixels cannot be COCO results: pycocotools counts",
        ),
        (lambda found: found.to_label_studio("a.tif"), "100000 x 100000 pixels cannot be a Label Studio brush"),
        (lambda found: found.masks, "5 x 100000 x 100000 pixels of dense masks would take 46 GiB; allowed are 16 GiB"),
    ],
)
def test_what_cannot_hold_such_a_picture_says_so(convert, message):
    with pytest.raises(M2FError, match=message):
        convert(result(SMALL))


def test_coco_results_up_to_32_bits():
    from pycocotools import mask as coco_mask

    side = 65_535
    runs = rectangle(side - 3, side - 5, side, side)
    found = Result({**result(["first pixel"]).outputs, "size": np.array([side, side], np.int32)})
    found.outputs["rle"][0], found.outputs["boxes"][0] = runs.rle(side, side), runs.box
    (row,) = found.to_coco(1)
    assert coco_mask.area(row["segmentation"]) == 15
    assert coco_mask.toBbox(row["segmentation"]).tolist() == row["bbox"] == [side - 3, side - 5, 3, 5]


def test_the_longest_side():
    line = np.broadcast_to(np.zeros((1, 1), np.uint8), (1, 4_194_303))
    assert open_picture(line).width == 4_194_303
    with pytest.raises(InvalidRequest, match="the sides of an image are 1 to 4194303"):
        open_picture(np.broadcast_to(line[:, :1], (1, 4_194_304)))
