"""Did deployment change the model? The same held-out images through mmdetection and through the server."""

import numpy as np
import pytest
from kserve import connect, image_input
from sources import CHECKPOINT, draw_held_out

from m2f.contract import PUBLIC_MODEL

pytestmark = [pytest.mark.server, pytest.mark.torch, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

COUNT = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The first held-out images."""
    return draw_held_out(tmp_path_factory.mktemp("shapes"), COUNT)


@pytest.fixture(scope="module")
def through_mmdet(data, evaluate):

    return evaluate.predict_dataset(evaluate.load_model(CHECKPOINT), data)


@pytest.fixture(scope="module")
def through_server(data, evaluate, server):
    """COCO results of the server, nothing dropped, as mmdetection drops nothing."""
    triton = connect(server, "grpc")
    truth = evaluate.read_annotations(data)
    category_ids = truth.getCatIds()
    results = []
    for image_id, image in truth.imgs.items():
        file = (data / "val" / image["file_name"]).read_bytes()
        got = triton.infer(PUBLIC_MODEL, image_input(file), ["scores", "labels", "rle", "size"], score_threshold=0.0)
        size = got["size"][0].tolist()
        for score, label, counts in zip(got["scores"][0], got["labels"][0], got["rle"][0], strict=True):
            segmentation = {"size": size, "counts": counts.decode()}
            category = category_ids[label]
            results.append(
                {"image_id": image_id, "category_id": category, "segmentation": segmentation, "score": float(score)}
            )
    return results


def test_the_ap_through_the_server_is_the_ap_of_the_pytorch_model(data, evaluate, through_mmdet, through_server):
    truth = evaluate.read_annotations(data)
    ours, theirs = evaluate.score(truth, through_server), evaluate.score(truth, through_mmdet)
    print(f"AP through the server {ours['AP']:.4f}, of the PyTorch model {theirs['AP']:.4f}")
    assert ours["AP"] == pytest.approx(theirs["AP"], abs=0.002)
    assert ours["AP50"] == pytest.approx(theirs["AP50"], abs=0.002)
    assert ours["AP"] >= 0.70  # a guard; the figure of the README is of 300 images (make eval-demo)
    assert ours["AP50"] >= 0.90


def test_confident_instances_are_the_same_one_by_one(through_mmdet, through_server):
    """Score, class and mask of every instance above 0.5, whatever their order."""
    from pycocotools import mask as coco

    def confident(results):
        found = [r for r in results if r["score"] > 0.5]
        return sorted(found, key=lambda r: (r["image_id"], r["category_id"], -r["score"]))

    ours, theirs = confident(through_server), confident(through_mmdet)
    assert len(ours) == len(theirs) > COUNT
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine["image_id"], mine["category_id"]) == (reference["image_id"], reference["category_id"])
        assert mine["score"] == pytest.approx(reference["score"], abs=1e-3)
        assert coco.iou([mine["segmentation"]], [reference["segmentation"]], [False])[0, 0] >= 0.99
    assert np.mean([m["segmentation"] == r["segmentation"] for m, r in zip(ours, theirs, strict=True)]) > 0.9
