"""The logits of an exported source, held against those that the model's own code made once."""

import numpy as np

from m2f.logits import ImageLogits


def equal_logits(source, picture, reference):
    """Return the float64 logits of an encoded picture as `ImageLogits`, after comparing them with the reference."""
    import torch

    from m2f_export.graph import with_input

    preprocessing = with_input(source, layout="float32_chw", size=None).preprocessing
    image, img_shape, ori_shape = preprocessing([picture])
    source.network.double()
    with torch.inference_mode():
        cls_logits, mask_logits = (found[0].numpy() for found in source.network(torch.from_numpy(image).double()))
    source.network.float()
    assert np.abs(cls_logits - reference["cls_logits"]).max() < 1e-4
    assert np.abs(mask_logits[:, 3::6, 2::9] - reference["mask_logits"]).max() < 1e-4
    shapes = {"img_shape": tuple(img_shape[0].tolist()), "ori_shape": tuple(ori_shape[0].tolist())}
    return ImageLogits(cls_logits.astype(np.float32), mask_logits.astype(np.float32), **shapes)
