"""The names of the weights: mmdetection's modules under the names that the original Mask2Former gives them.

The originals build the same network of other modules. One weight differs in more than its name: Swin merges four
patches in another order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

Renames = Sequence[tuple[str, str]]

_NUMBERS = range(1, 5)
_QUARTERS = [0, 2, 1, 3]  # where each of mmdetection's quarters of a patch stands in the original

# Each is a pattern and its replacement; all of them are applied, in order.
BACKBONE: Renames = (
    # ResNet
    (r"^backbone\.(conv1|bn1)\.", r"backbone.stem.\1."),
    *((rf"^backbone\.layer{n}\.", f"backbone.res{n + 1}.") for n in _NUMBERS),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    # Swin
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"^backbone\.stages\.", "backbone.layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"^(backbone\..*)\.ffn\.layers\.0\.0\.", r"\1.mlp.fc1."),
    (r"^(backbone\..*)\.ffn\.layers\.1\.", r"\1.mlp.fc2."),
)

_DECODER = r"^panoptic_head\.transformer_decoder\."
_PREDICTOR = "sem_seg_head.predictor."
_LAYER = rf"{_DECODER}layers\.(\d+)\."

MASK2FORMER: Renames = (
    *BACKBONE,
    # pixel decoder
    (r"\.input_convs\.(\d)\.conv\.", r".input_proj.\1.0."),
    (r"\.input_convs\.(\d)\.gn\.", r".input_proj.\1.1."),
    (r"\.lateral_convs\.0\.conv\.", ".adapter_1."),
    (r"\.lateral_convs\.0\.gn\.", ".adapter_1.norm."),
    (r"\.output_convs\.0\.conv\.", ".layer_1."),
    (r"\.output_convs\.0\.gn\.", ".layer_1.norm."),
    (r"\.mask_feature\.", ".mask_features."),
    (r"\.level_encoding\.weight$", ".transformer.level_embed"),
    (r"\.pixel_decoder\.encoder\.", ".pixel_decoder.transformer.encoder."),
    (r"(\.encoder\.layers\.\d+)\.ffn\.layers\.0\.0\.", r"\1.linear1."),
    (r"(\.encoder\.layers\.\d+)\.ffn\.layers\.1\.", r"\1.linear2."),
    *((rf"(\.encoder\.layers\.\d+)\.norms\.{n - 1}\.", rf"\1.norm{n}.") for n in _NUMBERS),
    (r"^panoptic_head\.pixel_decoder\.", "sem_seg_head.pixel_decoder."),
    # transformer decoder
    (rf"{_LAYER}cross_attn\.attn\.", rf"{_PREDICTOR}transformer_cross_attention_layers.\1.multihead_attn."),
    (rf"{_LAYER}self_attn\.attn\.", rf"{_PREDICTOR}transformer_self_attention_layers.\1.self_attn."),
    (rf"{_LAYER}norms\.0\.", rf"{_PREDICTOR}transformer_cross_attention_layers.\1.norm."),
    (rf"{_LAYER}norms\.1\.", rf"{_PREDICTOR}transformer_self_attention_layers.\1.norm."),
    (rf"{_LAYER}norms\.2\.", rf"{_PREDICTOR}transformer_ffn_layers.\1.norm."),
    (rf"{_LAYER}ffn\.layers\.0\.0\.", rf"{_PREDICTOR}transformer_ffn_layers.\1.linear1."),
    (rf"{_LAYER}ffn\.layers\.1\.", rf"{_PREDICTOR}transformer_ffn_layers.\1.linear2."),
    (rf"{_DECODER}post_norm\.", f"{_PREDICTOR}decoder_norm."),
    (r"^panoptic_head\.decoder_input_projs\.", f"{_PREDICTOR}input_proj."),
    (r"^panoptic_head\.cls_embed\.", f"{_PREDICTOR}class_embed."),
    *((rf"^panoptic_head\.mask_embed\.{2 * n}\.", f"{_PREDICTOR}mask_embed.layers.{n}.") for n in range(3)),
    (r"^panoptic_head\.", _PREDICTOR),
)

# Names of older files, and what the original's code makes of them.
_OLDER: Renames = (
    (r"(^|\.)sem_seg_head\.(?!predictor\.|pixel_decoder\.)", r"\1sem_seg_head.pixel_decoder."),
    (r"\.static_query\.", ".query_feat."),
)


class OriginalNames:
    """A network whose weights go by the names of the original."""

    def __init__(self, network: torch.nn.Module, renames: Renames) -> None:
        """Name the weights of a network.

        Args:
            network: a detector of mmdetection.
            renames: patterns in mmdetection's names, and their replacements.
        """
        self.network = network
        self.names = {renamed(name, renames): name for name in network.state_dict()}  # original -> mmdetection

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the weights by the original's names, as mmdetection orders their values."""
        weights = self.network.state_dict()
        return {original: weights[name] for original, name in self.names.items()}

    def load_state_dict(self, weights: Mapping[str, torch.Tensor], *, strict: bool) -> Any:
        """Put weights of the original into the network."""
        own = {self.names[original]: _ordered(original, tensor) for original, tensor in weights.items()}
        return self.network.load_state_dict(own, strict=strict)


def renamed(name: str, renames: Renames) -> str:
    """Return a name after all replacements."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def with_current_names(weights: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the weights of a file under the names of today's original; older files have other names."""
    return {renamed(key, _OLDER) if isinstance(key, str) else key: value for key, value in weights.items()}


def _ordered(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a weight of the original in mmdetection's order of the four patches that Swin merges."""
    if not re.search(r"\.downsample\.(norm|reduction)\.", name):
        return tensor
    # [..., 4 * C], a quarter for each patch -> mmdetection's unfold has the patches within each channel
    return tensor.unflatten(-1, (4, -1))[..., _QUARTERS, :].transpose(-1, -2).flatten(-2)
