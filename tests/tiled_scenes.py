"""Pictures with known objects, and what a network that makes no mistakes finds in their tiles."""

import numpy as np

from m2f import rle
from m2f.joining import Part
from m2f.runs import Runs


def rectangle(height, width, *box):
    """Return a mask with the pixels of a box: x1, y1, x2, y2."""
    x1, y1, x2, y2 = box
    mask = np.zeros((height, width), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def parts_of(tiles, objects, *, score=0.9):
    """Return each tile's instances: all pixels of each object that the tile sees, in connected pieces or not.

    Args:
        tiles: tiles of the picture.
        objects: pairs of class index and bool [H, W].
        score: of each instance, or a function of tile index and object index; 0: the tile does not find it.
    """
    parts = []
    for index, tile in enumerate(tiles):
        x1, y1, x2, y2 = tile.rect
        for number, (label, mask) in enumerate(objects):
            seen = mask[y1:y2, x1:x2]
            given = score(index, number) if callable(score) else score
            if seen.any() and given:
                runs = Runs.of_rle(rle.encode_mask(seen), *seen.shape, x=x1, y=y1)
                parts.append(Part(index, label, given, number, runs))
    return parts


def masks_of(found, height, width):
    """Return label and dense mask of each instance."""
    return [(part.label, rle.decode(part.mask.rle(height, width), height, width).astype(bool)) for part in found]


def same(found, objects):
    """Return whether the instances are the objects, pixel by pixel, in any order."""
    height, width = objects[0][1].shape

    def keys(pairs):
        return sorted((label, mask.tobytes()) for label, mask in pairs)

    return keys(masks_of(found, height, width)) == keys(objects)
