"""Weights of any network from its names alone, so that references need no weights beside them."""

import zlib

import numpy as np


def weights(shapes, seed=0):
    """Return an array for each name, from the name alone; logits then spread like those of a trained network.

    Args:
        shapes: the shape of each weight by its name, as a `state_dict` has them.
        seed: makes other weights.
    """
    return {name: _weight(name, tuple(shape), seed) for name, shape in shapes.items()}


def _weight(name, shape, seed):
    rng = np.random.default_rng(zlib.crc32(name.encode(), seed))
    ending = name.rpartition(".")[2]
    if ending == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if ending == "relative_position_index":
        return relative_position_index(round(shape[0] ** 0.5))
    values = rng.standard_normal(shape)
    if ending == "running_var":
        values = 1 + 0.2 * np.abs(values)
    elif len(shape) == 1:
        values = (ending == "weight") + 0.1 * values
    elif ending == "weight" and "embed.weight" not in name:
        values *= (2 / np.prod(shape[1:])) ** 0.5
        if "decoder.layers" in name:
            values *= 0.3  # or all queries become alike
        if "mask_" in name:  # behind a ReLU: without their mean, masks differ in more than their size
            values -= values.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    return values.astype(np.float32)


def relative_position_index(side):
    """Swin's table of positions in a window: int64 [side**2, side**2]."""
    y, x = np.divmod(np.arange(side * side), side)
    return (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
