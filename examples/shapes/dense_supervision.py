"""A loss for training only: predict the class of every pixel from the pixel decoder's features.

Queries alone learn classes late: a query must find its object before its class can be right. A 1x1 convolution on each
feature map predicts the class of each pixel, which teaches backbone and pixel decoder the classes from the first step.
The saved model does not contain the convolutions.
"""

import torch
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.registry import MODELS
from torch import nn
from torch.nn.functional import cross_entropy

PREFIX = "panoptic_head.dense."
BACKGROUND_WEIGHT = 0.3


def class_map(instances, size_hw, background):
    """Draw the masks of one picture into a map of class indices: int64 ``[H, W]``."""
    drawn = torch.full(size_hw, background, dtype=torch.long)
    for label, mask in zip(instances.labels, instances.masks.to_ndarray(), strict=True):
        drawn[torch.from_numpy(mask).bool()] = label
    return drawn


def sample_centres(maps, size_hw):
    """Take the class at the centre of each cell of a coarser grid: ``[B, H, W]`` to ``[B, h, w]``."""
    step_y, step_x = maps.shape[1] // size_hw[0], maps.shape[2] // size_hw[1]
    return maps[:, step_y // 2 :: step_y, step_x // 2 :: step_x]


@MODELS.register_module()
class DenselySupervisedHead(Mask2FormerHead):
    """Mask2FormerHead with a class loss on every feature map of its pixel decoder."""

    def __init__(self, *args, dense_weight=10.0, dense_only=False, **kwargs):
        super().__init__(*args, **kwargs)
        channels = self.decoder_embed_dims
        self.dense = nn.ModuleList(nn.Conv2d(channels, self.num_classes + 1, 1) for _ in range(4))
        self.dense_weight = dense_weight
        self.dense_only = dense_only
        self.features = []
        self.pixel_decoder.register_forward_hook(self._keep_features)

    def _keep_features(self, _module, _inputs, outputs):
        mask_features, multi_scale = outputs
        self.features = [mask_features, *multi_scale]

    def loss(self, x, batch_data_samples):
        """Add ``loss_dense`` to the losses of Mask2Former, or give it alone where ``dense_only`` is set."""
        size_hw = batch_data_samples[0].batch_input_shape
        maps = torch.stack([class_map(s.gt_instances, size_hw, self.num_classes) for s in batch_data_samples])
        if self.dense_only:
            self.pixel_decoder(x)
            losses = {}
        else:
            losses = super().loss(x, batch_data_samples)
        losses["loss_dense"] = self.dense_weight * self.dense_loss(maps)
        return losses

    def dense_loss(self, maps):
        """Return the mean cross entropy over the feature maps; ``maps`` are int64 ``[B, H, W]``."""
        weight = torch.ones(self.num_classes + 1)
        weight[-1] = BACKGROUND_WEIGHT
        terms = [
            cross_entropy(classify(features), sample_centres(maps, features.shape[-2:]), weight)
            for classify, features in zip(self.dense, self.features, strict=True)
        ]
        return torch.stack(terms).mean()
