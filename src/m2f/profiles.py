"""The systems whose instance post-processing is reproduced, and where the four differ.

All four take softmax over C+1 classes, the best query-class pairs, mask = logit > 0, and score = class score x mean
sigmoid inside the mask (epsilon 1e-6). The differences are data:

- mmdet: `MaskFormerFusionHead.instance_postprocess` of mmdetection 3.3.
- detectron2: `MaskFormer.instance_inference` (facebookresearch/Mask2Former, mask2former/maskformer_model.py)
  after `sem_seg_postprocess` (detectron2/modeling/postprocessing.py).
- huggingface: `Mask2FormerImageProcessor.post_process_instance_segmentation` of transformers 5.23. The processors of
  MaskFormer (straight from the cells) and EoMT (one class a query) have other rules, which are not reproduced.
- tao: `Mask2formerPlModule.instance_inference` (NVIDIA/tao_pytorch_backend, cv/mask2former/model/pl_model.py).
  The graph that TAO exports stops at the network's input: `img_shape` = `ori_shape` = size of the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2f.geometry import AxisGeometry, Ints, SizeHW, Taps, bilinear_taps


@dataclass(frozen=True, kw_only=True)
class Semantics:
    """How one system differs from the others.

    Attributes:
        background_label_id: column of no-object in the system's models: -1 the last, 0 the first.
        grid: (height, width) that all mask logits, padding included, are stretched to by bilinear interpolation.
            Mask scores are taken on the grid, and masks go from the grid to the image by nearest neighbour.
            None: bilinear to the network's input, crop of the padding, bilinear to the image.
        as_many_as_queries: take at most as many candidates as there are queries; otherwise only `pre_top_k` limits.
        drops_stuff: if a model has stuff classes, only things are instances.
        drops_empty: a mask without a pixel is not an instance.
        gives_boxes: boxes are those of the masks; otherwise zeros.
    """

    background_label_id: int = -1
    grid: SizeHW | None = None
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


def grid_taps(axis: AxisGeometry, grid: int) -> Taps:
    """Compose cells -> bilinear to a grid -> nearest neighbour to the original image, along one axis.

    Thresholding may follow the composed operator: nearest neighbour copies the sign of a logit.
    """
    resize = bilinear_taps(axis.cells, grid)
    nearest = nearest_source(grid, axis.original)
    return Taps(resize.source[:, nearest], resize.weight[:, nearest])


def nearest_source(size_in: int, size_out: int) -> Ints:
    """Return the input that each output copies under torch's `nearest`, size_in -> size_out: int64 [out].

    Rounds as torch does in float32 (`nearest_neighbor_compute_source_index` in ATen/native/UpSample.h).
    """
    scale = np.float32(size_in) / np.float32(size_out)
    source = (np.arange(size_out, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(source, size_in - 1)
