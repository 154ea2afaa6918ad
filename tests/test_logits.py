import numpy as np
import pytest
from logits import blobs

from m2f.errors import InputError
from m2f.logits import ImageLogits


def test_class_scores_are_a_softmax_without_no_object():
    cls_logits = np.array([[1000.0, 0, 1000.0], [-1000.0, 0, -1000.0]], np.float32)
    image = ImageLogits(cls_logits, np.zeros((2, 1, 1), np.float32), img_shape=(4, 4), ori_shape=(4, 4))
    assert image.num_classes == 2
    np.testing.assert_allclose(image.class_scores(-1), [[0.5, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(image.class_scores(0), [[0, 0.5], [1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_shape": (97, 128)}, "img_shape"),
        ({"img_shape": (0, 128)}, "img_shape"),
        ({"ori_shape": (0, 5)}, "ori_shape"),
        ({"cls_logits": np.zeros((11, 5), np.float32)}, "logits do not fit together"),
        ({"cls_logits": np.zeros(5, np.float32)}, "logits do not fit together"),
        ({"cls_logits": np.zeros((12, 0), np.float32)}, r"cls_logits \(12, 0\) must have .* classes and no-object"),
        ({"cls_logits": np.zeros((12, 1), np.float32)}, r"cls_logits \(12, 1\) must have from 1 to 1000 queries"),
        ({"cls_logits": np.zeros((12, 10_002), np.float32)}, "columns for from 1 to 10000 classes"),
        ({"cls_logits": np.zeros((0, 5)), "mask_logits": np.zeros((0, 4, 4))}, r"\(0, 5\) must have from 1 to 1000"),
        (
            {"cls_logits": np.zeros((1001, 5)), "mask_logits": np.zeros((1001, 4, 4))},
            "must have from 1 to 1000 queries",
        ),
        ({"mask_logits": np.zeros((12, 1, 65_536), np.float32)}, "must have at most 65535 cells along a side"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    cls_logits, mask_logits = blobs(np.random.default_rng(11))
    arguments = {"cls_logits": cls_logits, "mask_logits": mask_logits, "img_shape": (96, 128), "ori_shape": (9, 9)}
    with pytest.raises(InputError, match=message):
        ImageLogits(**{**arguments, **change})
