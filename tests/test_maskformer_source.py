"""mmdetection's MaskFormer."""

import pytest
from maskformer_configs import OFFICIAL, write_config
from sources import random_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", params=OFFICIAL)
def source(request, tmp_path_factory):
    """A small model of an official configuration."""
    from m2f_export.sources.mmdetection import load_mmdet

    config = write_config(tmp_path_factory.mktemp("maskformer"), request.param)
    return load_mmdet(config, random_checkpoint(config))


@pytest.mark.parametrize("img_shape", [(96, 160), (70, 130), (65, 129)])
def test_the_network_gives_what_mmdetections_head_gives(source, img_shape):
    """With the padding that a server makes, mmdetection's mask of the padding hides no cell."""
    import torch
    from mmdet.structures import DetDataSample

    images, model = torch.randn(2, 3, 96, 160), source.network.model
    samples = [DetDataSample(metainfo={"batch_input_shape": (96, 160), "img_shape": img_shape})] * 2
    with torch.inference_mode():
        classes, masks = model.panoptic_head(model.extract_feat(images), samples)
        cls_logits, mask_logits = source.network(images)
    assert torch.equal(cls_logits, classes[-1])
    assert torch.equal(mask_logits, masks[-1])


def test_what_is_served_is_described(source):
    assert source.kind.startswith("mmdetection MaskFormer (")
    assert (source.num_classes, len(source.facts.thing_classes)) == (133, 80)
    assert source.facts.class_names[80] == "banner"
    assert not source.settings.panoptic_filter_low_score
    assert source.preprocessing.pad_divisor == 32
    (note,) = source.notes
    assert note.endswith("does not pad images; the server pads them to multiples of 32")


def test_other_paddings_become_multiples_of_32(tmp_path):
    from m2f_export.sources.mmdetection import describe_mmdet

    divisor = "model['data_preprocessor'] = dict(pad_size_divisor=48)"
    source = describe_mmdet(write_config(tmp_path, OFFICIAL[0], divisor))
    assert source.preprocessing.pad_divisor == 96
    assert "pads images to multiples of 48; the server pads them to multiples of 96" in source.notes[0]
    source = describe_mmdet(write_config(tmp_path, OFFICIAL[0], divisor.replace("48", "64")))
    assert (source.preprocessing.pad_divisor, source.notes) == (64, ())


@pytest.mark.more
def test_the_graph_has_a_free_batch_and_free_sides(source, tmp_path):
    import numpy as np
    import onnxruntime
    import torch

    from m2f_export.graph import export_onnx, with_input

    graph = export_onnx(with_input(source, layout="uint8_hwc", size=None), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((1, 64, 96, 3), (3, 160, 224, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with torch.inference_mode():
            want = graph(torch.from_numpy(pixels))
        for found, wanted in zip(session.run(None, {"input": pixels}), want, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)
