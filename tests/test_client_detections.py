"""supervision and pandas, with the real libraries."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from m2f_client import Result
from m2f_client.fake import result_of

stacks_of_masks = hnp.arrays(bool, st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9)))


@given(stacks_of_masks)
@settings(deadline=None)
def test_supervision(masks):
    result = result_of(masks)
    found = result.to_supervision(["cat", "dog"])
    assert len(found) == len(masks)
    assert found.mask.dtype == bool
    assert np.array_equal(found.mask, masks)
    assert np.array_equal(found.xyxy, result.boxes)
    assert np.array_equal(found.confidence, result.scores)
    assert np.array_equal(found.class_id, result.labels)
    assert found.tracker_id is None
    assert found["class_name"].tolist() == ["cat", "dog", "2"][: len(masks)]
    assert np.array_equal(found.area, result.areas)  # supervision counts the mask


def test_supervision_goes_on_from_there():
    masks = np.zeros((3, 40, 50))
    masks[0, 5:20, 5:20] = masks[1, 6:20, 5:20] = masks[2, 25:35, 30:45] = 1
    found = result_of(masks, scores=[0.9, 0.8, 0.7], labels=[0, 0, 1]).to_supervision(["cat", "dog"])
    kept = found.with_nms(threshold=0.5)
    assert kept["class_name"].tolist() == ["cat", "dog"]
    both = sv.Detections.merge([found, result_of(np.zeros((0, 40, 50))).to_supervision()])
    assert len(both) == 3
    picture = np.zeros((40, 50, 3), np.uint8)
    assert sv.MaskAnnotator().annotate(picture.copy(), found)[10, 10].any()
    assert sv.LabelAnnotator().annotate(picture.copy(), found).any()  # it reads class_name


def test_supervision_without_masks():
    outputs = {name: result_of(np.ones((2, 3, 4))).outputs[name] for name in ("scores", "labels", "boxes")}
    assert Result(outputs).to_supervision().mask is None
    assert Result({**outputs, "rle": np.array([b"", b""], object)}).to_supervision().mask is None


@pytest.mark.parametrize("count", [0, 2])
def test_pandas(count):
    result = result_of(np.ones((count, 3, 4)), scores=[0.75, 0.5][:count], labels=[1, 0][:count])
    frame = result.to_pandas(["cat", "dog"])
    assert list(frame.columns) == ["class_name", "label", "score", "x1", "y1", "x2", "y2", "area", "query"]
    assert [str(frame[name].dtype) for name in ("label", "score", "x1", "area", "query")] == [
        "int32", "float32", "float32", "int32", "int32",
    ]  # fmt: skip
    assert pd.api.types.is_string_dtype(frame["class_name"])
    assert frame["class_name"].tolist() == ["dog", "cat"][:count]
    assert frame["score"].tolist() == [0.75, 0.5][:count]
    assert frame[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [[0, 0, 4, 3]] * count
    assert frame["area"].sum() == 12 * count


def test_pandas_of_what_was_asked_for():
    outputs = {name: result_of(np.ones((2, 3, 4))).outputs[name] for name in ("scores", "labels", "boxes")}
    assert list(Result(outputs).to_pandas().columns) == ["class_name", "label", "score", "x1", "y1", "x2", "y2"]


@pytest.mark.parametrize(("package", "method"), [("supervision", "to_supervision"), ("pandas", "to_pandas")])
def test_a_missing_package_is_named(package, method):
    """In a process of its own, where it cannot be imported: the rest of the client does not need it."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import numpy as np\nfrom m2f_client import M2FError\nfrom m2f_client.fake import result_of\n"
        "result = result_of(np.ones((1, 3, 4)))\nresult.polygons(), result.to_geojson(), result.to_labelme('a')\n"
        f"try:\n    result.{method}()\nexcept M2FError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(f"this needs {package}: pip install 'm2f[convert]'")
