"""Modules of mmdetection as they are traced: with a free batch, and without the images' sizes."""

from __future__ import annotations

from typing import Any

import torch

from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmdeploy.core.rewriters.rewriter_manager import RewriterManager  # noqa: E402

# A registry of our own: MMDeploy's Mask2Former rewrites upsample the masks in the graph, and its Swin rewrites fix the
# batch (open-mmlab/mmdeploy#2920).
REWRITES = RewriterManager()


@REWRITES.function_rewriter.register_rewriter("mmdet.models.backbones.swin.ShiftWindowMSA.window_reverse")
def window_reverse(self: Any, windows: torch.Tensor, H: int, W: int) -> torch.Tensor:  # noqa: N803 (mmdet's names)
    """Merge windows [B * windows, side, side, C] into [B, H, W, C]; in mmdet B is a Python int, so a constant."""
    side, channels = self.window_size, windows.shape[-1]
    rows = windows.view(-1, H // side, W // side, side, side, channels)
    return rows.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, channels)


@REWRITES.function_rewriter.register_rewriter("mmdet.models.dense_heads.MaskFormerHead.forward")
def maskformer_head(self: Any, features: Any, _samples: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the logits of every layer, without a mask of the padding.

    In mmdet the mask comes from the images' sizes. A cell of stride 32 is padding only if its first pixel is, so less
    than 32 pixels of padding mask no cell.
    """
    pixels, memory = self.pixel_decoder(features, [])
    positions = self.decoder_pe(mask=None, input=memory)
    memory = self.decoder_input_proj(memory)
    queries = self.query_embed.weight.expand(memory.shape[0], -1, -1)
    decoded = self.transformer_decoder(
        query=torch.zeros_like(queries), query_pos=queries, key=_tokens(memory), value=_tokens(memory),
        key_pos=_tokens(positions), key_padding_mask=None,
    )  # fmt: skip
    return self.cls_embed(decoded), torch.einsum("lbqc,bchw->lbqhw", self.mask_embed(decoded), pixels)


@REWRITES.function_rewriter.register_rewriter("mmdet.models.layers.TransformerEncoderPixelDecoder.forward")
def encoder_pixel_decoder(self: Any, features: Any, _metas: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute mask features and memory, without a mask of the padding: see `maskformer_head`."""
    projected = self.encoder_in_proj(features[-1])
    positions = self.positional_encoding(mask=None, input=projected)
    encoded = self.encoder(query=_tokens(projected), query_pos=_tokens(positions), key_padding_mask=None)
    memory = encoded.transpose(1, 2).reshape(projected.shape)
    pixels = self.encoder_out_proj(memory)
    for feature, lateral, output in reversed(list(zip(features, self.lateral_convs, self.output_convs, strict=False))):
        finer = lateral(feature)
        pixels = output(finer + torch.nn.functional.interpolate(pixels, size=finer.shape[-2:], mode="nearest"))
    return self.mask_feature(pixels), memory


def _tokens(features: torch.Tensor) -> torch.Tensor:
    """Flatten [N, C, H, W] to [N, H * W, C]."""
    return features.flatten(2).transpose(1, 2)
