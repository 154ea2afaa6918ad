"""The parts of `make bench`: what they list, and the figures that they derive."""

import importlib
import json

import pytest
from benchmarks import knee
from benchmarks.__main__ import PARTS


@pytest.mark.more
@pytest.mark.torch
@pytest.mark.parametrize("name", PARTS)
def test_cells_differ_and_can_be_written_down(name):
    quick, full = (importlib.import_module(f"benchmarks.{name}").part(quick=quick) for quick in (True, False))
    for part in (quick, full):
        assert part.name == name
        cells = [json.dumps(cell, sort_keys=True) for cell in part.cells]
        assert len(set(cells)) == len(cells)
        assert all(set(part.shared) <= set(cell) for cell in part.cells)
    assert len(quick.cells) < len(full.cells)


@pytest.mark.parametrize(
    ("figures", "full"),
    [
        ({}, ""),
        ({"of_engine": 0.95, "engine_busy": 0.99}, "GPU"),
        ({"cores_used": 1000, "engine_busy": 0.99}, "all cores"),
        ({"engine_busy": 0.99, "postprocess_busy": 0.9}, "engine"),  # its copies: the GPU has time left
        ({"postprocess_busy": 0.9}, "postprocess"),
    ],
)
def test_what_is_full_first(figures, full):
    idle = {"of_engine": 0.1, "cores_used": 0.1, "preprocess_busy": 0.1, "engine_busy": 0.1, "postprocess_busy": 0.1}
    assert knee.first_full(idle | figures) == full


def test_instances_that_a_gpu_needs():
    alone = {"gpu_ms": 20, "preprocess_ms": 8, "engine_ms": 25, "postprocess_ms": 4}  # 5 ms of copies
    alone |= {f"{process}_cpu_ms": 5 for process in knee.PROCESSES}
    lines = {line[1]: line[2:] for line in knee.needed("small", alone)}
    assert lines[20] == [50, 1, 2, 1, 2]  # images/s, preprocess, engine, postprocess, cores
    assert lines[2] == [500, 6, 5, 3, 13]


@pytest.mark.more
@pytest.mark.torch
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_head_and_the_postprocessing_find_the_same_instances(engine):
    from benchmarks import head  # needs torch

    rows = head.measured(None, engine=engine, size=head.EMBEDDED, objects=None, seconds=0.01)
    assert [row["way"] for row in rows] == [head.RLE, head.DENSE, head.FULL, head.STRIDE4]
    assert rows[0]["times_as_long"] == 1
    assert rows[0]["bytes"] < rows[1]["bytes"] < rows[2]["bytes"]
    answers = {way: function() for way, function in head.ways(head.embedded(), load=head.NETWORKS[engine]).items()}
    answers[head.FULL]["scores"] = answers[head.FULL]["scores"] - 0.01
    with pytest.raises(ValueError, match="not give the same instances"):
        head.check(answers[head.FULL], answers[head.DENSE])


@pytest.mark.more
@pytest.mark.server
def test_a_cell_of_the_knee():
    cell = {"size": "256 x 256", "gpu_ms": 2, "preprocess": 2, "engine": 2, "postprocess": 1}
    with knee.served(**cell) as stage:
        (row,) = knee.measured(stage, **cell, in_flight=2)
    assert row["images_s"] > 0
    assert 0 < row["of_engine"] < 1.2
    assert all(row[f"{name}_cpu_ms"] > 0 for name in ("tritonserver", "preprocess", "postprocess", "client"))
    assert 0 < row["postprocess_busy"] < 1
    (table,) = knee.tables([cell | row | {"in_flight": knee.LOADED}])
    assert len(table.lines) == 1
