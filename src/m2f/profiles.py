"""Whose instance post-processing is reproduced, and where the four differ.

All take softmax over C+1 classes, the best query-class pairs, mask = logit > 0, and score = class score x mean
sigmoid inside the mask (epsilon 1e-6). What differs is data, and stands here:

- mmdet: `MaskFormerFusionHead.instance_postprocess` of mmdetection 3.3.
- detectron2: `MaskFormer.instance_inference` (facebookresearch/Mask2Former, mask2former/maskformer_model.py)
  after `sem_seg_postprocess` (detectron2/modeling/postprocessing.py).
- huggingface: `Mask2FormerImageProcessor.post_process_instance_segmentation` of transformers 5.23. MaskFormer's
  and EoMT's processors have other ones: straight from the cells, and one class a query, respectively.
- tao: `Mask2formerPlModule.instance_inference` (NVIDIA/tao_pytorch_backend, cv/mask2former/model/pl_model.py).
  The graph that TAO exports stops at the network's input: that is `img_shape` = `ori_shape` = its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2f.geometry import Ints, Taps, bilinear_taps


@dataclass(frozen=True, kw_only=True)
class Semantics:
    """What one system does in its own way.

    Attributes:
        background_label_id: where its models have no-object: -1 the last class column, 0 the first.
        grid: height and width that all mask logits, padding included, are stretched to by bilinear interpolation.
            The mask score is taken there, and the mask goes on to the image by nearest neighbour. None: bilinear
            to the network's input, without its padding, bilinear to the image.
        as_many_as_queries: at most as many candidates are taken as there are queries; otherwise `pre_top_k` alone says.
        drops_stuff: where a model has stuff classes, only things are instances.
        drops_empty: a mask without a pixel is no instance.
        gives_boxes: boxes are those of the masks; otherwise zeros.
    """

    background_label_id: int = -1
    grid: tuple[int, int] | None = None
    as_many_as_queries: bool = False
    drops_stuff: bool = False
    drops_empty: bool = False
    gives_boxes: bool = True


PROFILES = {
    "mmdet": Semantics(drops_stuff=True),
    "detectron2": Semantics(drops_stuff=True, gives_boxes=False),
    "huggingface": Semantics(grid=(384, 384), as_many_as_queries=True, drops_empty=True),
    "tao": Semantics(background_label_id=0),
}


def grid_taps(*, cells: int, grid: int, original: int) -> Taps:
    """Compose cells -> bilinear to the grid -> nearest neighbour to the original image, along one axis.

    The sign of a logit is what nearest neighbour copies, so that thresholding may come last.
    """
    resize = bilinear_taps(cells, grid)
    nearest = nearest_source(grid, original)
    return Taps(resize.source[:, nearest], resize.weight[:, nearest])


def nearest_source(size_in: int, size_out: int) -> Ints:
    """Return the input each output copies under torch's `nearest`, size_in -> size_out: int64 [out].

    Rounds as torch does in float32 (`nearest_neighbor_compute_source_index` in ATen/native/UpSample.h).
    """
    scale = np.float32(size_in) / np.float32(size_out)
    source = (np.arange(size_out, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(source, size_in - 1)
