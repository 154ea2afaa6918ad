"""The post-processing benchmark: its parts run, and its equality check can fail."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco

from m2f.kernels import BEST, KERNELS, NUMPY
from m2f.settings import Settings

pytestmark = [pytest.mark.more, pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

PEERS = ("mmdet", "mmdet, kept encoded", "detectron2", "huggingface", "prune + cv2")


@pytest.fixture(scope="module")
def bench():
    """The benchmark's package."""
    import benchmarks.postprocess.__main__  # brings all the parts; here, since it needs torch

    return benchmarks.postprocess


@pytest.fixture(scope="module")
def case(bench):
    """Eight objects in a small picture."""
    return bench.scenes.synthetic(8, (120, 200), queries=12, classes=9)


@pytest.fixture(scope="module")
def want(bench, case):
    return bench.ours.run(case, NUMPY)


@pytest.fixture
def found(bench, want):
    """The same answer as a peer's, in another order."""
    order = np.arange(len(want.scores))[::-1]
    return bench.peers.Found(want.scores[order], want.labels[order], want.boxes[order], [want.rle[i] for i in order])


@pytest.mark.parametrize("count", [15, 60, 100])
def test_the_scene_has_the_instances_it_is_asked_for_as_large_as_those_of_coco(bench, count):
    scene = bench.scenes.synthetic(count, (480, 640))
    got = bench.ours.run(scene, BEST)
    assert sorted(got.queries) == list(range(count))
    assert 11_000 < got.areas.mean() < 16_000  # the mean area hardly depends on how many there are
    assert 0.30 < np.mean(got.areas < 32**2) < 0.55  # COCO: 41 %
    assert 0.15 < np.mean(got.areas > 96**2) < 0.35  # COCO: 24 %


def test_without_a_threshold_as_many_detections_as_mmdetection_keeps(bench):
    scene = bench.scenes.synthetic(15, (240, 320), threshold=0)
    got = bench.ours.run(scene, BEST)
    assert len(got.scores) == 100
    assert 30 < len(set(got.queries)) < 100


def test_images_are_sized_as_mmdetection_resizes_them(bench):
    shapes = {output: bench.scenes.synthetic(1, output, queries=1).img_shape for output in bench.scenes.OUTPUTS}
    assert shapes == {
        (427, 640): (800, 1199), (480, 640): (800, 1067), (800, 1333): (800, 1333), (1080, 1920): (750, 1333)
    }  # fmt: skip


def test_every_way_is_equal_and_timed(bench, case):
    rows = bench.compare.compare(case, PEERS, rounds=1)
    assert [row.way for row in rows] == [*PEERS, *(f"m2f {kernel}" for kernel in KERNELS), "floor"]
    assert {row.pixels for row in rows if row.way not in ("huggingface", "floor")} == {0}
    for row in rows:
        assert row.instances == row.masks == 8
        assert row.median_ms > 0
        assert row.ratio == pytest.approx(rows[0].median_ms / row.median_ms)
    assert rows[-1].over_floor == 1
    assert rows[0].dense_bytes == 8 * 120 * 200
    assert "m2f numpy" in bench.report.cases_table(rows)


def test_a_threshold_that_nothing_reaches(bench, case):
    nothing = replace(case, settings=Settings(score_threshold=1.0))
    rows = bench.compare.compare(nothing, PEERS, rounds=1)
    assert {row.instances for row in rows} == {0}


def test_the_same_answer_in_another_order_is_equal(bench, case, want, found):
    assert bench.equality.differing_pixels(found, want, case) == 0


def flipped(counts, case, row, column):
    """The mask with one pixel the other way."""
    mask = coco.decode({"size": list(case.ori_shape), "counts": counts})
    mask[row, column] ^= 1
    return coco.encode(np.asfortranarray(mask))["counts"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f._replace(scores=f.scores[1:], labels=f.labels[1:], rle=f.rle[1:], boxes=f.boxes[1:]), "instances"),
        (lambda f: f._replace(scores=f.scores - np.float32(2e-5)), "score"),
        (lambda f: f._replace(labels=(f.labels + 1) % 9), "classes"),
        (lambda f: f._replace(boxes=f.boxes + 1), "box"),
    ],
)
def test_another_answer_is_refused(bench, case, want, found, *, change, message):
    with pytest.raises(bench.equality.UnequalError, match=message):
        bench.equality.differing_pixels(change(found), want, case)


def test_a_pixel_may_differ_only_where_its_logit_is_almost_zero(bench, case, want, found):
    query = int(want.queries[-1])  # the first row of `found`
    logits = bench.equality.exact_logits(case, query).numpy()
    row, column = np.unravel_index(np.abs(logits).argmin(), logits.shape)
    rounded = found._replace(rle=[flipped(found.rle[0], case, row, column), *found.rle[1:]])
    tolerance = 1.01 * abs(logits[row, column])  # as if that were rounding
    assert bench.equality.differing_pixels(rounded, want, case, tolerance=tolerance) == 1
    row, column = np.unravel_index(logits.argmin(), logits.shape)
    wrong = found._replace(rle=[flipped(found.rle[0], case, row, column), *found.rle[1:]])
    with pytest.raises(bench.equality.UnequalError, match="1 pixels differ, one with a logit of"):
        bench.equality.differing_pixels(wrong, want, case, tolerance=tolerance)


def test_hugging_faces_masks_must_overlap_with_ours(bench, case, want):
    found = bench.peers.huggingface(case)
    assert 0.8 < bench.equality.overlap(found, want, case) <= 1
    empty = coco.encode(np.zeros(case.ori_shape, np.uint8, order="F"))["counts"]
    half = found._replace(rle=[flipped(empty, case, 0, i) for i in range(len(found.rle))])
    with pytest.raises(bench.equality.UnequalError, match="overlap"):
        bench.equality.overlap(half, want, case)
    with pytest.raises(bench.equality.UnequalError, match="classes"):
        bench.equality.overlap(found._replace(labels=found.labels + 1), want, case)


def test_the_floor_counts_a_mask_once(bench, case):
    everything = replace(case, settings=Settings(score_threshold=0.0, pre_top_k=-1))
    floor = bench.floor.Floor(everything, bench.ours.run(everything, NUMPY))
    assert floor.queries == list(range(12))
    one_class = replace(case, settings=Settings(score_threshold=0.0, pre_top_k=-1, classes="0"))
    assert floor.pixels == bench.ours.run(one_class, NUMPY).areas.sum()
    floor()


def test_ways_take_turns(bench):
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = bench.timing.interleaved(ways, rounds=2, turn_s=0)
    assert calls == ["a", "b", "a", "b"]
    assert [len(times[name].all) for name in "ab"] == [2, 2]
    assert times["a"].median_ms >= 0
    assert times["a"].cold_ms >= 0


def test_peak_memory_is_seen_whoever_allocates(bench):
    python = bench.memory.peak_bytes(lambda: np.ones(50_000_000, np.uint8))
    assert 50_000_000 <= python < 60_000_000
    assert bench.memory.peak_bytes(lambda: None) < 1_000_000


def test_memory_is_measured_in_a_process_of_its_own(bench):
    (row,) = bench.memory.measure([(BEST.name, 15)])
    assert 0 < row.masks < 10
    assert BEST.name in bench.report.memory_table([row])


@pytest.mark.server
def test_the_step_inside_triton(bench, case):
    rows = bench.served.measure([case], rounds=2)
    assert [(row.model, row.transport) for row in rows] == [
        (model, transport)
        for model in ("mask2former_postprocess", "nothing")
        for transport in ("grpc", "shared memory")
    ]
    for row in rows:
        assert row.compute_infer_ms > 0
        assert row.round_trip_ms > 0
        assert row.instances == 8
    assert "nothing, grpc" in bench.report.served_table(rows)


def test_growth_targets_tables_and_pictures(bench, case, tmp_path):
    points = [(panel, x, case) for panels in bench.report.PANELS.values() for panel in panels for x in (1, 8)]
    growth = bench.growth.measure([BEST], points, rounds=1)
    assert bench.growth.factor(growth, "queries", BEST.name)[0] == 8
    rows = bench.compare.compare(replace(case, name="15 objects, 800x1333"), ("mmdet",), rounds=1)
    rows = [replace(row, output="800x1333") for row in rows]
    memory = [bench.memory.Row("numpy", 15, 1, 2.5)]
    judged = {target.name: target.passed for target in bench.targets.judge(rows, memory, growth, [])}
    assert judged["peak memory of numpy in masks, up to 100 instances"] is False
    assert judged["dense over RLE response, 15 at 800x1333"] is not None
    assert judged[f"m2f {BEST} against mmdet + encode, 15 at 480x640"] is None  # was not run
    bench.report.write_csv(rows, tmp_path / "rows.csv")
    assert [row["way"] for row in csv.DictReader((tmp_path / "rows.csv").open())] == [row.way for row in rows]
    bench.report.draw_ways(rows, tmp_path / "ways.png")
    bench.report.draw_growth(growth, tmp_path / "growth.png")
    assert (tmp_path / "ways.png").read_bytes()[:4] == (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"
