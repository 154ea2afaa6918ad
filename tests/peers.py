"""Other systems' Mask2Former instance post-processing, as each does it: what the profiles are held against.

Hugging Face's is its own function. Those of detectron2 and TAO are in packages that need a GPU build or a licence
server to install, so their published algorithms are written down here again, in torch for the same rounding.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np


class Peer(NamedTuple):
    """What a system answers for one image, in its own order."""

    scores: np.ndarray  # float32 [K]
    labels: np.ndarray  # int [K]
    masks: np.ndarray  # bool [K, H, W]


def huggingface(cls_logits, mask_logits, *, ori_shape, threshold=0.0):
    """`post_process_instance_segmentation` of transformers, one mask per instance; it drops empty masks.

    It never learns where the padding is: all of the mask logits is stretched over the image.
    """
    import torch
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    outputs = SimpleNamespace(
        class_queries_logits=torch.from_numpy(cls_logits)[None],
        masks_queries_logits=torch.from_numpy(mask_logits)[None],
    )
    (result,) = Mask2FormerImageProcessorPil().post_process_instance_segmentation(
        outputs, threshold=threshold, target_sizes=[ori_shape], return_binary_maps=True
    )
    segments = result["segments_info"]
    masks = result["segmentation"].numpy() if segments else np.zeros((0, *ori_shape))  # a map where nothing is found
    return Peer(
        np.array([segment["score"] for segment in segments], np.float32),
        np.array([segment["label_id"] for segment in segments], int),
        masks == 1,
    )


def detectron2(cls_logits, mask_logits, *, img_shape, ori_shape, top_k=100, things=None, stride=4):
    """Mask2Former's `MaskFormer.forward` and `instance_inference`; boxes are zeros there, always.

    facebookresearch/Mask2Former@161be51 mask2former/maskformer_model.py and facebookresearch/detectron2@012c898
    detectron2/modeling/postprocessing.py (`sem_seg_postprocess`). `things`: with PANOPTIC_ON only these are kept.
    """
    import torch

    probabilities = torch.from_numpy(cls_logits).softmax(-1)[:, :-1]
    full = _at_image_size(mask_logits, img_shape, ori_shape, stride)
    return _best_pairs(probabilities, full, top_k, things)


def tao(cls_logits, mask_logits, *, img_shape, ori_shape, top_k=100, stride=4):
    """TAO's `predict_step`, `on_predict_batch_end` and `instance_inference`: no-object first, no boxes.

    NVIDIA/tao_pytorch_backend@1e6c939 nvidia_tao_pytorch/cv/mask2former/model/pl_model.py. Stuff stays.
    """
    import torch

    probabilities = torch.from_numpy(cls_logits).softmax(-1)[:, 1:]
    return _best_pairs(probabilities, _at_image_size(mask_logits, img_shape, ori_shape, stride), top_k)


def tao_graph(cls_logits, mask_logits, *, top_k=100, stride=4):
    """What the graph that TAO exports answers (tao_deploy adds nothing): masks at the size of the network's input.

    NVIDIA/tao_pytorch_backend@191babf nvidia_tao_pytorch/cv/mask2former/model/mask2former.py, `Postprocessor`.
    """
    import torch

    probabilities = torch.from_numpy(cls_logits).softmax(-1)[:, 1:]
    return _best_pairs(probabilities, _upsampled(mask_logits, stride), top_k)


def _upsampled(mask_logits, stride):
    import torch

    size = [stride * cells for cells in mask_logits.shape[1:]]
    return _bilinear(torch.from_numpy(mask_logits), size)


def _at_image_size(mask_logits, img_shape, ori_shape, stride):
    return _bilinear(_upsampled(mask_logits, stride)[:, : img_shape[0], : img_shape[1]], ori_shape)


def _bilinear(masks, size):
    import torch

    return torch.nn.functional.interpolate(masks[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def _best_pairs(probabilities, full, top_k, things=None):
    """The best `top_k` of query x class, each weighted by the mean sigmoid inside its mask."""
    num_classes = probabilities.shape[1]
    class_scores, pairs = probabilities.flatten().topk(min(top_k, probabilities.numel()))
    queries, labels = pairs // num_classes, pairs % num_classes
    if things is not None:
        kept = np.isin(labels.numpy(), things)
        class_scores, queries, labels = class_scores[kept], queries[kept], labels[kept]
    logits = full[queries]
    inside = logits > 0
    sums = (logits.sigmoid() * inside).flatten(1).sum(1)
    scores = class_scores * sums / (inside.float().flatten(1).sum(1) + 1e-6)
    return Peer(scores.numpy(), labels.numpy(), inside.numpy())
