"""mmdetection configurations and checkpoints, read."""

import numpy as np
import pytest
from sources import CHECKPOINT, CONFIG, pure_python_config, random_checkpoint, small_config

from m2f.settings import Settings

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # torch's tracer and mmdet's imports say much

R50 = "mask2former_r50_8xb2-lsj-50e_coco.py"
PANOPTIC = "mask2former_r50_8xb2-lsj-50e_coco-panoptic.py"
SWIN_T = "mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py"


@pytest.fixture(scope="module")
def source():
    from m2f_export.sources import mmdetection as mmdet_source

    return mmdet_source


@pytest.fixture(scope="module", params=[R50, SWIN_T])
def small(request, source, tmp_path_factory):
    """A small model of an official configuration, as Source."""
    config = small_config(tmp_path_factory.mktemp("small"), request.param)
    return source.load_mmdet(config, random_checkpoint(config))


def test_the_network_gives_what_mmdetection_gives(small):
    """Against the detector's own methods, without a rewrite."""
    import torch

    images = torch.randn(3, 3, 96, 160)
    model = small.network.model
    with torch.inference_mode():
        classes, masks = model.panoptic_head(model.extract_feat(images), [])
        cls_logits, mask_logits = small.network(images)
    assert torch.equal(cls_logits, classes[-1])
    assert torch.equal(mask_logits, masks[-1])
    assert mask_logits.shape == (3, 12, 24, 40)


def test_mmdetection_is_left_as_it_was(small):
    import torch
    from mmdet.models.backbones.swin import ShiftWindowMSA

    before = ShiftWindowMSA.window_reverse
    with torch.inference_mode():
        small.network(torch.randn(1, 3, 64, 64))
    assert ShiftWindowMSA.window_reverse is before


def test_the_embedded_configuration_is_described(source):
    described = source.load_mmdet(CONFIG, CHECKPOINT)
    assert described.facts.class_names == ("circle", "square", "triangle", "star", "ring")
    assert described.num_classes == 5
    assert described.preprocessing.scale == (256, 256)
    assert described.preprocessing.keep_ratio
    assert described.preprocessing.mean == (124.0, 116.0, 104.0)
    assert described.preprocessing.std == (58.0, 57.0, 57.0)
    assert described.settings == Settings()
    assert described.facts.thing_classes == {0, 1, 2, 3, 4}


def test_a_pure_python_configuration_is_read(source, tmp_path):
    """Types are classes, as in mmdetection's new configurations; the model built is the same."""
    import torch

    pipeline = ["dict(type=LoadImageFromFile)", "dict(type=Resize, scale=(256, 256), keep_ratio=True)",
                "dict(type=PackDetInputs)"]  # fmt: skip
    pure = source.load_mmdet(pure_python_config(tmp_path, pipeline), CHECKPOINT)
    named = source.load_mmdet(CONFIG, CHECKPOINT)
    assert pure.kind == "mmdetection Mask2Former (pure)"
    assert pure.facts.class_names == ("a, b", "c", "d", "e", "f")
    assert (pure.preprocessing, pure.settings) == (named.preprocessing, named.settings)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(pure.network(image)[1], named.network(image)[1])


def test_stuff_and_the_panoptic_rules_are_the_heads(source, tmp_path):
    more = "model['test_cfg'] = dict(_delete_=True, object_mask_thr=0.4, iou_thr=0.6, max_per_image=30)\n"
    described = source.describe_mmdet(small_config(tmp_path, PANOPTIC, more))
    assert described.facts.thing_classes == set(range(80))
    assert described.settings == Settings(
        pre_top_k=30, panoptic_score_threshold=0.4, panoptic_overlap_threshold=0.6, panoptic_filter_low_score=False
    )


@pytest.mark.parametrize(
    ("name", "classes", "last"),
    [(R50, 80, "toothbrush"), (PANOPTIC, 133, "rug-merged")],
)
def test_names_come_from_the_data_set_where_nothing_else_says(source, tmp_path, name, classes, last):
    described = source.describe_mmdet(small_config(tmp_path, name))
    assert described.network is None
    assert (described.num_classes, len(described.facts.class_names), described.facts.class_names[-1]) == (
        classes,
        classes,
        last,
    )
    assert described.preprocessing.scale == (1333, 800)


def test_names_of_another_number_of_classes_are_not_believed(source, tmp_path):
    """People forget `metainfo`: their checkpoint then states the 80 names of COCO."""
    fewer = "\nmodel['panoptic_head'].update(num_things_classes=3, loss_cls=dict(class_weight=[1.0] * 3 + [0.1]))\n"
    assert source.describe_mmdet(small_config(tmp_path, R50, fewer)).facts.class_names == ()


def test_a_network_that_takes_bgr_gets_it(source, tmp_path):
    import torch

    bgr = "\nmodel['data_preprocessor'] = dict(bgr_to_rgb=False, mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])\n"
    config = small_config(tmp_path, R50, bgr)
    weights = random_checkpoint(config)
    described = source.load_mmdet(config, weights)
    assert described.preprocessing.mean == (3.0, 2.0, 1.0)
    assert described.preprocessing.std == (6.0, 5.0, 4.0)
    images = torch.randn(1, 3, 64, 64)
    model = described.network.model
    with torch.inference_mode():
        classes, _ = model.panoptic_head(model.extract_feat(images.flip(1)), [])
        assert torch.equal(described.network(images)[0], classes[-1])


class Bomb:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_a_checkpoint_of_training_is_read_and_nothing_in_it_runs(source, tmp_path):
    import torch
    from mmengine.logging import HistoryBuffer

    state = torch.load(CHECKPOINT, weights_only=True)["state_dict"]
    history = HistoryBuffer(np.ones(3), np.ones(3))
    torch.save(
        {"state_dict": state, "message_hub": {"loss": history}, "optimizer": Bomb(tmp_path / "ran")},
        tmp_path / "epoch.pth",
    )
    assert source.load_mmdet(CONFIG, tmp_path / "epoch.pth").num_classes == 5
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        "transformer_decoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=20_000_000)))",
        "feat_channels=2**40",
    ],
)
def test_a_model_larger_than_its_checkpoint_is_refused_before_it_takes_the_memory(source, tmp_path, change):
    (tmp_path / "c.py").write_text(f"_base_ = [{str(CONFIG)!r}]\nmodel = dict(panoptic_head=dict({change}))")
    with pytest.raises(source.ExportError, match=r"cannot build the model of .*c\.py: .*(more than 2\d\d MiB|memory)"):
        source.load_mmdet(tmp_path / "c.py", CHECKPOINT)


BASE = f"_base_ = ['mmdet::mask2former/{R50}']\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"c\.py: no such file"),
        ("model = (", r"c\.py is not a configuration"),
        ("x = 1 / 0", r"c\.py is not a configuration"),
        ("x = 1", r"it has no 'model'; allowed: Mask2Former"),
        ("model = dict(type='MaskRCNN')", r"its model is 'MaskRCNN'; allowed: Mask2Former"),
        (BASE + "model = dict(backbone=dict(depth=51))", r"cannot build the model of .*c\.py"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(source, tmp_path, text, message):
    if text is not None:
        (tmp_path / "c.py").write_text(text)
    with pytest.raises(source.ExportError, match=message):
        source.load_mmdet(tmp_path / "c.py", CHECKPOINT)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[dict(type='Rotate')]", r"a step 'Rotate'; allowed: .*Resize"),
        ("[dict(type='Resize', scale_factor=0)]", r"pipeline\[0\]\.scale_factor is 0; allowed: None, or a number"),
        ("[dict(type='Resize', scale=(8, 8), interpolation='area')]", r"interpolation is 'area'; allowed: 'bilinear'"),
    ],
)
def test_a_test_pipeline_that_the_server_cannot_do_is_named(source, tmp_path, steps, message):
    (tmp_path / "c.py").write_text(BASE + f"test_dataloader = dict(dataset=dict(pipeline={steps}))")
    with pytest.raises(source.ExportError, match=message):
        source.describe_mmdet(tmp_path / "c.py")
