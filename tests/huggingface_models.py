"""Tiny models of random weights, as `save_pretrained` writes them."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from m2f_export.sources.huggingface_folder import ARCHITECTURES  # noqa: E402

STAGES = ["stage1", "stage2", "stage3", "stage4"]
NAMES = ["cat", "dog", "bird"]


MASK2FORMER, MASKFORMER, EOMT, EOMT_DINOV3, ONEFORMER = ARCHITECTURES


def swin(window_size=7):
    return transformers.SwinConfig(
        image_size=64, embed_dim=16, depths=[2, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=window_size,
        out_features=STAGES,
    )  # fmt: skip


def resnet():
    return transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic", out_features=STAGES
    )


def build(architecture, *, backbone=None, **changes):
    """Make a model small enough to trace in seconds; every weight drawn, so that none of its parts is idle."""
    torch.manual_seed(0)
    common = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    eomt = {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64, "patch_size": 16,
        "num_queries": 10, "num_blocks": 2, "num_upscale_blocks": 2, "num_register_tokens": 2,
    }  # fmt: skip
    detr = transformers.DetrConfig(
        d_model=32, decoder_layers=2, decoder_ffn_dim=64, decoder_attention_heads=4, num_queries=10, encoder_layers=1
    )
    arguments = {
        MASK2FORMER: {
            "backbone_config": backbone or swin(), "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
            "encoder_feedforward_dim": 64, "encoder_layers": 1, "decoder_layers": 4, "num_attention_heads": 4,
            "dim_feedforward": 64, "num_queries": 10,
        },
        MASKFORMER: {
            "backbone_config": backbone or swin(), "fpn_feature_size": 32, "mask_feature_size": 32,
            "decoder_config": detr,
        },
        ONEFORMER: {
            "backbone_config": backbone or swin(), "conv_dim": 32, "mask_dim": 32, "hidden_dim": 32,
            "encoder_feedforward_dim": 64, "encoder_layers": 1, "decoder_layers": 4, "num_attention_heads": 4,
            "dim_feedforward": 64, "num_queries": 10, "text_encoder_width": 16, "text_encoder_num_layers": 1,
            "text_encoder_n_ctx": 2,
        },
        EOMT: eomt | {"mlp_ratio": 2},
        EOMT_DINOV3: eomt | {"intermediate_size": 64},
    }[architecture]  # fmt: skip
    model_class = getattr(transformers, architecture)
    model = model_class._from_config(
        model_class.config_class(**(arguments | common | changes)), attn_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith(("bias", "token", "tokens")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def processor_for(architecture, **changes):
    names = {MASK2FORMER: "Mask2Former", MASKFORMER: "MaskFormer", ONEFORMER: "OneFormer"}
    name = names.get(architecture, "Eomt")
    size = {"shortest_edge": 64, "longest_edge": 96 if name != "Eomt" else 64}
    defaults = {"size": size} | ({"do_pad": True} if name == "Eomt" else {})
    return getattr(transformers, f"{name}ImageProcessorPil")(**(defaults | changes))


def save(folder, architecture=MASK2FORMER, *, model=None, processor=None, **options):
    (model or build(architecture)).save_pretrained(folder, **options)
    (processor or processor_for(architecture)).save_pretrained(folder)
    return folder


def load_huggingface(*arguments):
    """Read a folder; the module imports transformers' models, which takes seconds of every worker's time."""
    from m2f_export.sources import huggingface

    return huggingface.load_huggingface(*arguments)
