"""Small models of MMSegmentation, written out: a configuration needs no base, and so no MMSegmentation."""

import json
from pathlib import Path

from seeded import weights
from sources import smooth

REFERENCES = json.loads(Path(__file__).with_name("references").joinpath("mmsegmentation.json").read_text())
MASK2FORMER, MASKFORMER = ("Mask2FormerHead", "SwinTransformer"), ("MaskFormerHead", "ResNet")
_PICTURES = {MASK2FORMER: (50, 70), MASKFORMER: (50, 75)}  # the second needs no padding, which its model has not

BACKBONES = {
    "ResNet": ("dict(type='ResNet', depth=18, stem_channels=8, base_channels=8, norm_cfg=dict(type='SyncBN'), "
               "contract_dilation=True, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'))",
               [8, 16, 32, 64]),
    "SwinTransformer": ("dict(type='SwinTransformer', embed_dims=16, depths=[2, 2, 1, 1], num_heads=[1, 2, 4, 8], "
                        "window_size=4, mlp_ratio=2.0)", [16, 32, 64, 128]),
}  # fmt: skip
NAMES = ("sky", "road", "tree", "house", "car")
HEADS = {
    "Mask2FormerHead": """
        strides=[4, 8, 16, 32], num_transformer_feat_level=3, pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder', num_outs=3, norm_cfg=dict(type='GN', num_groups=8),
            act_cfg=dict(type='ReLU'), positional_encoding=dict(num_feats=16, normalize=True),
            encoder=dict(num_layers=1, layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=32, num_heads=4, num_levels=3, num_points=4, batch_first=True),
                ffn_cfg=dict(embed_dims=32, feedforward_channels=64, num_fcs=2)))),""",
    "MaskFormerHead": """
        in_index=[0, 1, 2, 3], pixel_decoder=dict(
            type='mmdet.PixelDecoder', norm_cfg=dict(type='GN', num_groups=8), act_cfg=dict(type='ReLU')),""",
}
MODEL = """
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        pad_val=0, seg_pad_val=255, size=(64, 64), test_cfg={padding}),
    backbone={backbone},
    decode_head=dict(
        type='{head}', in_channels={channels}, feat_channels=32, out_channels=32, num_classes=5, num_queries=12,
        align_corners=False, enforce_decoder_input_project=False, {options}
        positional_encoding=dict(num_feats=16, normalize=True),
        transformer_decoder=dict(return_intermediate=True, num_layers=2, layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32, num_heads=4, batch_first=True),
            cross_attn_cfg=dict(embed_dims=32, num_heads=4, batch_first=True),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=64, num_fcs=2))),
        loss_cls=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False, class_weight=[1.0] * 5 + [0.1]),
        loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True),
        loss_dice=dict(type='mmdet.DiceLoss', use_sigmoid=True, activate=True, naive_dice=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 64), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs')]
test_dataloader = dict(dataset=dict(type='ADE20KDataset', pipeline=test_pipeline))
"""


def write_config(folder, head, backbone, more="", *, padding="dict(size_divisor=32)"):
    """Write a configuration; `more` stands behind it."""
    options, channels = BACKBONES[backbone]
    path = folder / f"{head}_{backbone}.py"
    text = MODEL.format(head=head, options=HEADS[head], backbone=options, channels=channels, padding=padding)
    path.write_text(text + more)
    return path


def write_checkpoint(folder, head, backbone):
    """Write the weights of a model that has a reference."""
    import torch

    reference = REFERENCES[f"{head}_{backbone}"]
    tensors = {name: torch.from_numpy(value) for name, value in weights(reference["shapes"], reference["seed"]).items()}
    torch.save({"state_dict": tensors, "meta": {"dataset_meta": {"classes": NAMES}}}, folder / "iter.pth")
    return folder / "iter.pth"


def write_model(folder, head, backbone):
    """Write the configuration and the weights of a model that has a reference."""
    padding = "dict(size_divisor=32)" if (head, backbone) == MASK2FORMER else None
    return write_config(folder, head, backbone, padding=padding), write_checkpoint(folder, head, backbone)


def picture_of(head, backbone):
    """Return the picture of a reference, uint8 RGB [H, W, 3]."""
    return smooth(1, *_PICTURES[head, backbone])[0]
