"""The original MaskFormer, compared with its own code.

`references/original_maskformer.json` was made once by facebookresearch/MaskFormer on detectron2 in float64, outside
this project: its model is built from the configurations of `original_maskformers`, and has the weights of `seeded`. The
logits, `semantic` (the classes of `sem_seg`) and `panoptic` are of one picture, after detectron2's
`ResizeShortestEdge`.
"""

import numpy as np
import pytest
from original_maskformers import NAMES, REFERENCES, write_checkpoint, write_config
from pictures import encode
from source_logits import equal_logits
from sources import smooth

from m2f.panoptic import panoptic
from m2f.semantic import semantic

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def detectron2():
    from m2f_export.sources import detectron2

    return detectron2


@pytest.fixture(scope="module", params=NAMES)
def model(request, detectron2, tmp_path_factory):
    """A tiny model as Source, and its reference."""
    folder = tmp_path_factory.mktemp(request.param)
    source = detectron2.load_detectron2(write_config(folder, request.param), write_checkpoint(folder, request.param))
    return source, REFERENCES[request.param]


def test_logits_and_maps_are_the_originals(model):
    source, reference = model
    logits = equal_logits(source, encode(smooth(1, 60, 100)[0], "png"), reference)
    classes = np.array([[ord(letter) - ord("a") for letter in row] for row in reference["semantic"]])
    assert (semantic(logits, source.settings) == classes).all()
    if "panoptic" in reference:
        found = panoptic(logits, source.settings, source.facts)
        assert (found.ids == np.array([list(map(int, row)) for row in reference["panoptic"]])).all()
        assert [[s["id"], s["isthing"], s["category_id"]] for s in found.segments] == reference["segments"]


def test_what_is_served_is_described(model):
    source, _ = model
    panoptic_on = source.num_classes == 19
    assert source.kind == f"original MaskFormer ({'resnet' if panoptic_on else 'swin'})"
    assert source.settings.semantic_resize == ("logits" if panoptic_on else "scores")
    assert source.settings.panoptic_score_threshold == 0.3
    assert not source.settings.panoptic_filter_low_score
    assert source.facts.thing_classes == (set(range(11, 19)) if panoptic_on else set(range(5)))


def test_the_official_configurations_for_coco_do_not_pad(detectron2, tmp_path):
    source = detectron2.describe_detectron2(
        write_config(tmp_path, "resnet", "MODEL: {MASK_FORMER: {SIZE_DIVISIBILITY: 0}}")
    )
    assert source.preprocessing.pad_divisor == 32
    assert "does not pad images; the server pads them to multiples of 32" in source.notes[0]


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("resnet", "{MASK_FORMER: {ENC_LAYERS: 2}}", "MASK_FORMER.ENC_LAYERS is 2; allowed: 0"),
        ("resnet", "{MASK_FORMER: {PRE_NORM: True}}", "MASK_FORMER.PRE_NORM is True; allowed: False"),
        ("resnet", "{MASK_FORMER: {ENFORCE_INPUT_PROJ: True}}", "PROJ is True; allowed: False, for"),
        ("resnet", "{MASK_FORMER: {TRANSFORMER_IN_FEATURE: res5}}", "FEATURE is 'res5'; allowed: 'trans"),
        ("swin", "{MASK_FORMER: {TRANSFORMER_IN_FEATURE: res4}}", "IN_FEATURE is 'res4'; allowed: 'res5' or 'transfor"),
        ("swin", "{MASK_FORMER: {TRANSFORMER_IN_FEATURE: transformer_encoder}}", "allowed: 'res5', for PIXEL"),
        ("swin", "{MASK_FORMER: {NHEADS: 5}}", "NHEADS is 5; allowed: a divisor of 32"),
        ("swin", "{MASK_FORMER: {SIZE_DIVISIBILITY: -1}}", "SIZE_DIVISIBILITY is -1; allowed: a whole number from 0"),
        ("swin", "{SEM_SEG_HEAD: {MASK_DIM: 64}}", "MASK_DIM is 64; allowed: 32, as MODEL.MASK_FORMER.HIDDEN_DIM"),
        ("swin", "{SEM_SEG_HEAD: {PIXEL_DECODER_NAME: Own}}", "NAME is 'Own'; allowed: 'BasePixelDecoder' or"),
        ("swin", "{SEM_SEG_HEAD: {NAME: PerPixelBaselineHead}}", "NAME is 'PerPixelBaselineHead'; allowed: "),
        ("swin", "{META_ARCHITECTURE: SemanticSegmentor}", "is 'SemanticSegmentor'; allowed: 'MaskFormer'"),
        ("resnet", "{BACKBONE: {NAME: build_resnet_deeplab_backbone}}", "is 'build_resnet_deeplab_backbone'; "),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_named(detectron2, tmp_path, name, more, message):
    config = write_config(tmp_path, name, f"MODEL: {more}")
    with pytest.raises(detectron2.ExportError, match=rf"mine\.yaml: MODEL\..*{message}"):
        detectron2.describe_detectron2(config)
