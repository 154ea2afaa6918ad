"""mmdet's official Mask2Former, made small enough to ship and to run on any processor.

Derives from the config that mmdet ships and changes only sizes, data and schedule.
"""

_base_ = ["mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"]

classes = ("circle", "square", "triangle", "star", "ring")
num_classes = len(classes)
image_size = (256, 256)
feat_channels = 64
heads = 4

# Integer mean: padding with zeros after normalisation is padding with the mean before it, exactly, in uint8.
data_preprocessor = dict(
    mean=[124, 116, 104],
    std=[58, 57, 57],
    pad_size_divisor=256,
    batch_augments=[
        dict(
            type="BatchFixedSizePad",
            size=image_size,
            img_pad_value=0,
            pad_mask=True,
            mask_pad_value=0,
            pad_seg=False,
        )
    ],
)

model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        depth=18,
        base_channels=16,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,  # a short run from scratch never opens blocks that start at zero
        init_cfg=None,
    ),
    panoptic_head=dict(
        in_channels=[16, 32, 64, 128],
        feat_channels=feat_channels,
        out_channels=feat_channels,
        num_things_classes=num_classes,
        num_stuff_classes=0,
        num_queries=40,
        pixel_decoder=dict(
            norm_cfg=dict(type="GN", num_groups=16),
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=feat_channels, num_heads=heads),
                    ffn_cfg=dict(embed_dims=feat_channels, feedforward_channels=256),
                ),
            ),
            positional_encoding=dict(num_feats=feat_channels // 2),
        ),
        positional_encoding=dict(num_feats=feat_channels // 2),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=feat_channels, num_heads=heads),
                cross_attn_cfg=dict(embed_dims=feat_channels, num_heads=heads),
                ffn_cfg=dict(embed_dims=feat_channels, feedforward_channels=256),
            ),
        ),
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.2]),
    ),
    panoptic_fusion_head=dict(num_things_classes=num_classes, num_stuff_classes=0),
    train_cfg=dict(num_points=1024),
)

# ---- data: train.py and evaluate.py set data_root
data_root = "data/shapes/"
metainfo = dict(classes=classes)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=image_size, ratio_range=(0.75, 1.35), resize_type="Resize", keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_size=image_size,
        crop_type="absolute",
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="RandomFlip", prob=[0.25, 0.25, 0.25], direction=["horizontal", "vertical", "diagonal"]),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(4, 4), by_mask=True),
    dict(type="PhotoMetricDistortion", brightness_delta=24, contrast_range=(0.7, 1.3), saturation_range=(0.6, 1.4)),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    batch_sampler=None,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/train.json",
        data_prefix=dict(img="train/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/val.json",
        data_prefix=dict(img="val/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/val.json", metric=["segm"])
test_evaluator = val_evaluator

# ---- schedule: trained from scratch, so the backbone learns at full speed
# The weights in this folder were trained in pieces: see README.md.
max_iters = 14000
stages = [  # for train.py; ``until`` is a share of max_iters
    dict(side=192, until=0.08, dense_only=True),  # 1,120 steps
    dict(side=192, until=0.3572),  # 5,000
    dict(side=256, until=1.0),
]
optim_wrapper = dict(
    optimizer=dict(lr=8e-4),
    paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=1.0, decay_mult=1.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=100, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=max_iters - 100, begin=100, end=max_iters, eta_min=4e-6, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=10**9, dynamic_intervals=None)
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=2))
randomness = dict(seed=7)
