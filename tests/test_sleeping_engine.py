"""The benchmarks' sleeping engine behind the real server, with mask logits in half precision."""

import sys
from pathlib import Path

import numpy as np
import pytest
from throwaway import FREE_PORTS

from m2f.contract import PANOPTIC_OUTPUTS, RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f.logits import ImageLogits
from m2f.panoptic import panoptic
from m2f.postprocess import postprocess
from m2f.semantic import semantic
from m2f.settings import Settings
from m2f_client import Client
from m2f_server import serve

pytestmark = [pytest.mark.server, pytest.mark.more]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def sleeping(monkeypatch):
    """The module of the benchmarks."""
    monkeypatch.syspath_prepend(ROOT)
    import benchmarks.sleeping_engine

    yield benchmarks.sleeping_engine
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


def test_every_step_takes_half_precision_and_raw_gives_single(sleeping):
    work = sleeping.embedded()
    scene = work.scene
    masks = scene.mask_logits.astype(np.float16).astype(np.float32)
    image = ImageLogits(scene.cls_logits, masks, **scene.shapes)
    want = postprocess(image, scene.settings)
    outputs = (*STRUCTURED_OUTPUTS, *PANOPTIC_OUTPUTS, *RAW_OUTPUTS, "semantic")
    with (
        sleeping.sleeping_repository(work, dtype="FP16") as repository,
        serve(model_repository=repository, **FREE_PORTS) as server,
        Client(server.grpc_url) as client,
    ):
        found = client.predict(work.picture, outputs=outputs)
    assert len(found) == len(want.rle) > 0
    assert list(found.rle) == want.rle
    np.testing.assert_allclose(found.scores, want.scores, rtol=1e-6)
    np.testing.assert_array_equal(found.mask_logits, masks, strict=True)
    np.testing.assert_array_equal(found.cls_logits, scene.cls_logits, strict=True)
    np.testing.assert_array_equal(found.panoptic, panoptic(image, Settings()).ids)
    np.testing.assert_array_equal(found.semantic, semantic(image, Settings()))
