"""Small models of mmdetection's official MaskFormer configurations."""

_BACKBONES = {
    "r50_ms-16xb1-75e_coco": ("dict(depth=18, base_channels=8, init_cfg=None)", [8, 16, 32, 64]),
    "swin-l-p4-w12_64xb1-ms-300e_coco": (
        "dict(embed_dims=16, depths=[2, 1, 1, 1], num_heads=[1, 2, 4, 8], init_cfg=None)", [16, 32, 64, 128],
    ),
}  # fmt: skip
OFFICIAL = tuple(_BACKBONES)
_ATTENTION = "self_attn_cfg=dict(embed_dims=32, num_heads=4)"
_FFN = "ffn_cfg=dict(embed_dims=32, feedforward_channels=64)"
_ENCODER = f"encoder=dict(num_layers=1, layer_cfg=dict({_ATTENTION}, {_FFN})), positional_encoding=dict(num_feats=16),"


def write_config(folder, name, more=""):
    """Write a configuration that makes an official one small; `more` stands behind it."""
    backbone, channels = _BACKBONES[name]
    path = folder / f"{name}.py"
    path.write_text(f"""
_base_ = ["mmdet::maskformer/maskformer_{name}.py"]
model = dict(backbone={backbone}, panoptic_head=dict(
    in_channels={channels}, feat_channels=32, out_channels=32, num_queries=12, positional_encoding=dict(num_feats=16),
    pixel_decoder=dict({_ENCODER if name.startswith("r50") else ""} norm_cfg=dict(num_groups=8)),
    transformer_decoder=dict(num_layers=2, layer_cfg=dict(
        {_ATTENTION}, cross_attn_cfg=dict(embed_dims=32, num_heads=4), {_FFN}))))
{more}
""")
    return path
