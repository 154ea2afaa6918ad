"""MMSegmentation's Mask2Former and MaskFormer, read without MMSegmentation.

`references/mmsegmentation.json` was made once with MMSegmentation 1.2.2 on mmdetection 3.3, in float64: the models of
`mmseg_configs`, with the weights of `seeded`, on a picture that their own test pipeline and `data_preprocessor` read.
`semantic` is `pred_sem_seg` of `EncoderDecoder.predict`.
"""

import numpy as np
import pytest
from mmseg_configs import (
    MASK2FORMER,
    MASKFORMER,
    NAMES,
    REFERENCES,
    picture_of,
    write_checkpoint,
    write_config,
    write_model,
)
from pictures import encode
from source_logits import equal_logits

from m2f.semantic import semantic

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def mmdetection():
    from m2f_export.sources import mmdetection

    return mmdetection


@pytest.fixture(scope="module", params=[MASK2FORMER, MASKFORMER], ids=lambda kind: kind[0])
def model(request, mmdetection, tmp_path_factory):
    """A model as Source, its reference, and the encoded picture of the reference."""
    source = mmdetection.load_mmdet(*write_model(tmp_path_factory.mktemp("mmseg"), *request.param))
    return source, REFERENCES["_".join(request.param)], encode(picture_of(*request.param), "png")


def test_logits_and_the_semantic_map_are_mmsegmentations(model):
    source, reference, picture = model
    logits = equal_logits(source, picture, reference)
    want = np.array([list(map(int, row)) for row in reference["semantic"]])
    assert (semantic(logits, source.settings) == want).all()
    assert len(np.unique(want)) > 1


def test_what_is_served_is_described(model):
    source, _, _ = model
    assert source.kind.startswith(("MMSegmentation Mask2Former (", "MMSegmentation MaskFormer ("))
    assert source.facts.class_names == NAMES
    assert source.facts.thing_classes == set(range(5))  # regions are instances: a semantic model has no stuff
    assert source.settings.semantic_resize == "scores"
    assert (source.preprocessing.scale, source.preprocessing.pad_divisor) == ((128, 64), 32)
    assert source.preprocessing.resample == "opencv_bilinear"
    assert "ask for the output 'semantic'" in source.notes[-1]
    does_not_pad = any("does not pad images; the server pads them to multiples of 32" in note for note in source.notes)
    assert does_not_pad == ("MaskFormer (" in source.kind)


def test_weights_of_an_auxiliary_head_are_not_read(mmdetection, tmp_path):
    import torch

    config = write_config(tmp_path, *MASKFORMER, "model['auxiliary_head'] = dict(type='FCNHead')")
    checkpoint = write_checkpoint(tmp_path, *MASKFORMER)
    contents = torch.load(checkpoint)
    contents["state_dict"]["auxiliary_head.conv_seg.weight"] = torch.ones(1)
    torch.save(contents, checkpoint)
    assert mmdetection.load_mmdet(config, checkpoint).num_classes == 5


def test_weights_that_do_not_fit_are_named_as_in_the_file(mmdetection, tmp_path):
    import torch

    torch.save({"decode_head.cls_embed.weight": torch.zeros(6, 32)}, tmp_path / "iter.pth")
    with pytest.raises(mmdetection.ExportError, match=r"does not fit .*missing \(backbone\.conv1\.weight"):
        mmdetection.load_mmdet(write_config(tmp_path, *MASKFORMER), tmp_path / "iter.pth")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("model['test_cfg']['mode'] = 'slide'", r"model\.test_cfg\.mode is 'slide'; allowed: 'whole'"),
        (
            "model['backbone']['type'] = 'ResNetV1c'",
            r"backbone\.type is 'ResNetV1c'; allowed: 'ResNet', 'ResNeXt', 'Swin",
        ),
        (
            "model['backbone']['type'] = 'mmseg.MixVisionTransformer'",
            r"backbone\.type is 'mmseg\.MixVision.*; allowed: ",
        ),
        ("model['backbone']['dilations'] = (1, 1, 2, 4)", r"backbone\.dilations is \(1, 1, 2, 4\); allowed: 1 in all"),
        ("model['backbone'] = 'ResNet'", r"model\.backbone is 'ResNet'; allowed: a dict"),
        (
            "model['decode_head']['type'] = 'UPerHead'",
            r"decode_head\.type is 'UPerHead'; allowed: 'Mask2FormerHead' or",
        ),
        ("model['decode_head']['num_classes'] = 0", r"decode_head\.num_classes is 0; allowed: a whole number from 1"),
        ("model['decode_head']['align_corners'] = True", r"decode_head\.align_corners is True; allowed: False"),
        ("model['neck'] = dict(type='FPN')", r"model\.neck is .*; allowed: None"),
        ("model['head'] = 1", r"model\.head is not an option that m2f export knows; allowed: backbone, decode_head"),
        ("model['data_preprocessor']['pad_val'] = 'x'", r"data_preprocessor\.pad_val is 'x'; allowed: a number"),
        ("model['data_preprocessor']['colour'] = 1", r"data_preprocessor\.colour is not an option"),
        ("model['data_preprocessor']['type'] = 'Own'", r"data_preprocessor\.type is 'Own'; allowed: 'SegDataPreP"),
        (
            "model['data_preprocessor']['test_cfg'] = dict(size=(64, 64))",
            r"test_cfg\.size is \(64, 64\); allowed: None",
        ),
        (
            "model['data_preprocessor']['test_cfg'] = dict(size_divisor=0)",
            r"size_divisor is 0; allowed: None, or a whole",
        ),
        ("test_pipeline[1] = dict(type='ResizeToMultiple')", r"pipeline\[1\] is a step 'ResizeToMultiple'; allowed: "),
        ("test_dataloader['dataset']['metainfo'] = dict(classes=['a'])", r"classes is \['a'\]; allowed: 5 names"),
        (
            "data = test_dataloader; del test_dataloader",
            r"MMSegmentation 0: .*allowed: mmdetection 3, MMSegmentation 1",
        ),
    ],
)
def test_what_cannot_be_served_is_named(mmdetection, tmp_path, more, message):
    with pytest.raises(mmdetection.ExportError, match=r"MaskFormerHead_ResNet\.py.*" + message):
        mmdetection.describe_mmdet(write_config(tmp_path, *MASKFORMER, more))


def test_names_with_the_scope_of_mmsegmentation_are_read(mmdetection, tmp_path):
    more = """
model['type'], model['decode_head']['type'] = 'mmseg.EncoderDecoder', 'mmseg.MaskFormerHead'
model['_scope_'] = test_pipeline[3]['_scope_'] = 'mmseg'
test_pipeline[3]['type'] = 'mmseg.PackSegInputs'
"""
    assert mmdetection.describe_mmdet(write_config(tmp_path, *MASKFORMER, more)).num_classes == 5


def test_the_names_of_ade20k_are_known(mmdetection, tmp_path):
    config = write_config(tmp_path, *MASKFORMER, "model['decode_head']['num_classes'] = 150")
    assert mmdetection.describe_mmdet(config).facts.class_names[:3] == ("wall", "building", "sky")
