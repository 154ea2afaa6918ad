"""`panoptic_semantics`: the panoptic segmentation of transformers, compared with transformers' own functions."""

from types import SimpleNamespace

import numpy as np
import pytest
from logits import SIZES, blobs

from m2f.kernels import KERNELS
from m2f.logits import ImageLogits
from m2f.model_facts import ModelFacts
from m2f.panoptic import panoptic
from m2f.settings import Settings

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

PROCESSORS = {"huggingface": "Mask2Former", "huggingface_maskformer": "MaskFormer"}
THRESHOLDS = {"panoptic_score_threshold": 0.5, "panoptic_overlap_threshold": 0.6}


def transformers_own(name, cls_logits, mask_logits, ori_shape, stuff):
    import torch
    import transformers

    outputs = SimpleNamespace(
        class_queries_logits=torch.from_numpy(cls_logits)[None],
        masks_queries_logits=torch.from_numpy(mask_logits)[None],
    )
    processor = getattr(transformers, f"{name}ImageProcessorPil")()
    sizes = None if name == "OneFormer" else [ori_shape]
    (answer,) = processor.post_process_panoptic_segmentation(
        outputs, threshold=0.5, overlap_mask_area_threshold=0.6, label_ids_to_fuse=stuff, target_sizes=sizes
    )
    return answer["segmentation"].numpy(), answer["segments_info"]


def check_equal(semantics, logits, sizes, stuff, *, processor=None, **options):
    """The same segments of the same classes and scores, and the same pixels; return the number of segments."""
    img_shape, ori_shape = sizes
    image = ImageLogits(*logits, img_shape=img_shape, ori_shape=ori_shape)
    settings = Settings(panoptic_semantics=semantics, **THRESHOLDS)
    got = panoptic(image, settings, ModelFacts(thing_classes=frozenset(range(4)) - stuff), **options)
    ids, segments = transformers_own(processor or PROCESSORS[semantics], *logits, ori_shape, stuff)
    merged = list(first_of_each(segments))
    assert [segment["category_id"] for segment in got.segments] == [segment["label_id"] for segment in merged]
    partner = np.array([0, *(segment["id"] for segment in merged)])
    assert (partner[got.ids] == np.maximum(ids, 0)).mean() >= 1 - 1e-3
    return len(merged)


def first_of_each(segments):
    """Of a fused class transformers lists every query; the first one stands for all."""
    fused = set()
    for segment in segments:
        if not segment["was_fused"] or segment["label_id"] not in fused:
            yield segment
        if segment["was_fused"]:
            fused.add(segment["label_id"])


@pytest.mark.parametrize("semantics", PROCESSORS)
@pytest.mark.parametrize("name", SIZES)
def test_equal_on_every_kind_of_size(name, semantics):
    cells, img_shape, ori_shape = SIZES[name]
    logits = blobs(np.random.default_rng(5), cells=cells, queries=14, objects=10)
    check_equal(semantics, logits, (img_shape, ori_shape), {1, 2})


@pytest.mark.parametrize("semantics", PROCESSORS)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_equal_with_things_stuff_or_both(semantics, kernel):
    rng, found = np.random.default_rng(6), 0
    for _ in range(12):
        cells = tuple(rng.integers(4, 30, 2).tolist())
        stuff = set(rng.choice(4, int(rng.integers(0, 5)), replace=False).tolist())
        sizes = tuple(4 * side for side in cells), tuple(rng.integers(20, 200, 2).tolist())
        logits = blobs(rng, cells=cells, queries=20, objects=int(rng.integers(0, 20)), noise=0.0)
        found += check_equal(semantics, logits, sizes, stuff, kernel=kernel)
    assert found > 30


def test_oneformers_own_at_the_size_of_its_masks():
    """To resize, its processor needs torchvision, which is not installed here."""
    rng, found = np.random.default_rng(8), 0
    for _ in range(12):
        logits = blobs(rng, cells=(24, 32), queries=20, objects=12, noise=0.0)
        sizes = (96, 128), (24, 32)
        found += check_equal("huggingface_maskformer", logits, sizes, {0, 3}, processor="OneFormer")
    assert found > 30


def test_a_map_of_nothing_is_void():
    cls_logits, mask_logits = blobs(np.random.default_rng(7), objects=0)
    sizes = {"img_shape": (96, 128), "ori_shape": (50, 60)}
    got = panoptic(ImageLogits(cls_logits, mask_logits, **sizes), Settings(panoptic_semantics="huggingface"))
    assert not got.ids.any()
    assert got.segments == []
