"""Random logits of every shape that has broken such code before."""

import numpy as np


def blobs(rng, *, queries=12, classes=4, cells=(24, 32), objects=6, noise=0.5):
    """Round objects on a noisy background: (cls_logits [Q, C+1], mask_logits [Q, h, w])."""
    cls_logits = rng.normal(0, 1, (queries, classes + 1)).astype(np.float32)
    cls_logits[:, -1] += 4
    cls_logits[np.arange(objects), rng.integers(0, classes, objects)] += 8
    y, x = np.mgrid[: cells[0], : cells[1]]
    centres = rng.uniform(0, 1, (queries, 2)) * cells
    radii = rng.uniform(0.05, 0.4, queries) * min(cells)
    distance = np.hypot(y - centres[:, :1, None], x - centres[:, 1:, None])
    mask_logits = (radii[:, None, None] - distance) * 1.5 + rng.normal(0, noise, (queries, *cells))
    return cls_logits, mask_logits.astype(np.float32)


# name: (cells, img_shape, ori_shape); the padded network input is 4 x cells
SIZES = {
    "padded right": ((24, 32), (96, 100), (480, 500)),
    "padded below": ((24, 32), (60, 128), (61, 130)),
    "not padded": ((24, 32), (96, 128), (96, 128)),
    "same size, padded": ((24, 32), (90, 121), (90, 121)),
    "shrunk": ((24, 32), (96, 128), (33, 41)),
    "shrunk to a pixel": ((24, 32), (96, 128), (1, 1)),
    "one valid pixel": ((8, 8), (1, 1), (7, 5)),
    "one cell": ((1, 1), (4, 4), (9, 13)),
    "one row of cells": ((1, 40), (3, 160), (2, 333)),
    "one column of cells": ((40, 1), (160, 2), (333, 3)),
    "odd everything": ((17, 23), (67, 91), (131, 77)),
    "wide": ((4, 64), (15, 256), (20, 3000)),
    "tall": ((64, 4), (256, 13), (3000, 19)),
    "anisotropic": ((24, 32), (96, 128), (200, 50)),
}
