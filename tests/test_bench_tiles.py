"""The benchmark of tiles: its figures, and what it holds the real model to on a small picture."""

import json

import numpy as np
import pytest
from benchmarks.tiles import large, mosaics, offsets
from benchmarks.tiles.ground import one_ground
from benchmarks.tiles.mosaic import CELL, Mosaic, Thing, mosaic
from benchmarks.tiles.scores import Found, Outcome, average_precision, outcomes, placed
from pycocotools import mask as coco

H, W = 50, 80


def rle(x1, y1, x2, y2):
    return placed(np.ones((y2 - y1, x2 - x1), bool), x1, y1, H, W)


def thing(*box, label=0):
    return Found(0, label, 1.0, rle(*box))


def instance(*box, label=0, score=0.9):
    return Found(0, label, score, rle(*box))


@pytest.mark.parametrize("shape", [(4, 3), (H, 2), (1, 1)], ids=["inside", "of full height", "a pixel"])
def test_a_small_mask_in_a_large_picture(shape):
    mask = np.random.default_rng(shape).random(shape) > 0.4
    x, y = 7, H - shape[0]
    whole = np.zeros((H, W), bool)
    whole[y : y + shape[0], x : x + shape[1]] = mask
    np.testing.assert_array_equal(coco.decode(placed(mask, x, y, H, W)), whole)


OBJECT = thing(10, 10, 30, 30)


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        pytest.param([instance(10, 10, 30, 30)], Outcome.ONCE, id="itself"),
        pytest.param([instance(10, 10, 30, 22)], Outcome.ONCE, id="most of it"),
        pytest.param([instance(10, 10, 30, 18)], Outcome.NOT, id="a part"),
        pytest.param([instance(10, 10, 30, 30, label=1)], Outcome.NOT, id="another class"),
        pytest.param([instance(10, 10, 30, 30, score=0.4)], Outcome.NOT, id="unsure"),
        pytest.param([instance(50, 10, 70, 30)], Outcome.NOT, id="elsewhere"),
        pytest.param([instance(10, 10, 30, 20), instance(10, 20, 30, 30)], Outcome.SEVERAL_TIMES, id="halves"),
        pytest.param([instance(10, 10, 30, 30), instance(5, 25, 35, 29)], Outcome.SEVERAL_TIMES, id="a piece more"),
        pytest.param([], Outcome.NOT, id="nothing"),
    ],
)
def test_what_became_of_an_object(found, outcome):
    assert outcomes([OBJECT], found) == [outcome]


def test_average_precision():
    truth = [OBJECT, thing(50, 10, 70, 30, label=1)]
    right = [instance(10, 10, 30, 30), instance(50, 10, 70, 30, label=1)]
    assert average_precision(truth, right) == pytest.approx(1.0)
    assert average_precision(truth, right[:1]) == pytest.approx(0.5)  # of one class of two
    assert average_precision(truth, []) == 0


def test_objects_at_seams():
    mask = np.zeros((CELL, CELL), bool)
    mask[100:120, 100:120] = True
    scene = Mosaic(2, [np.zeros((CELL, CELL, 3), np.uint8)] * 4, [Thing(3, 0, mask, CELL, CELL)])  # from pixel 356
    assert scene.pixels.shape == (2 * CELL, 2 * CELL, 3)
    assert scene.at_seams([(0, 0, 360, 512)]).tolist() == [True]
    assert scene.at_seams([(0, 0, 356, 512), (300, 300, 376, 376), (376, 0, 512, 512)]).tolist() == [False]


@pytest.mark.parametrize("draw", [mosaic, one_ground])
def test_the_scenes_are_the_picture(draw):
    scene = draw(2)
    for number, pixels in enumerate(scene.scenes):
        y, x = (CELL * place for place in divmod(number, 2))
        np.testing.assert_array_equal(scene.pixels[y : y + CELL, x : x + CELL], pixels)
    assert len(scene.things) > 4


@pytest.mark.parametrize("module", [mosaics, offsets, large])
def test_cells_differ_and_can_be_written_down(module):
    quick, full = (module.part(quick=quick) for quick in (True, False))
    for part in (quick, full):
        cells = [json.dumps(cell, sort_keys=True) for cell in part.cells]
        assert len(set(cells)) == len(cells)
        assert all(set(part.shared) <= set(cell) for cell in part.cells)


@pytest.mark.server
def test_tiles_find_what_scenes_by_themselves_give(server, tmp_path):
    stage = mosaics.Stage(f"grpc://{server.grpc_url}", one_ground(4), tmp_path)
    rows = {
        way: mosaics.measured(stage, overlap=0.25, threshold=0.3, way=way)[0] for way in (mosaics.ALONE, mosaics.M2F)
    }
    alone, tiles = rows.values()
    assert alone["at_seams"] > 40
    assert tiles["ap"] > alone["ap"] - 0.05, rows
    assert tiles["seam_several_times"] <= alone["seam_several_times"], rows
    assert tiles["seam_once"] >= alone["seam_once"] - 1, rows
    [table] = mosaics.tables(
        [{"picture": "p", "side": 4, "overlap": 0.25, "threshold": 0.3, "way": way} | row for way, row in rows.items()]
    )
    assert [line[0] for line in table.lines] == list(rows)
