"""Label Studio's tasks with predictions, ready to import: masks as brush regions, without loss.

The labelling configuration needs `<BrushLabels name="label" toName="image">` with the class names as its labels, and
`<Image name="image" value="$image"/>`; for results without masks, `<RectangleLabels>` instead of `<BrushLabels>`.
The form of a task: https://labelstud.io/guide/predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.errors import M2FError
from m2f_client.converters.result_like import ResultLike

_CHANNELS = 4  # a brush is stored as RGBA
_WORD_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
_MAX_PIXELS = 1 << 30
_MAX_RUN = 1 << 16
_HEADER_BITS = 32 + 5 + 4 * 4


def task(
    result: ResultLike,
    image: str,
    class_names: Sequence[str] | None = None,
    *,
    from_name: str = "label",
    to_name: str = "image",
) -> dict[str, Any]:
    """Return a task with one prediction: a region, with its score, for each instance whose mask is not empty.

    Args:
        result: needs `scores`, `labels`, `size` and masks (`rle`, `packed_masks` or `masks`), or else `boxes`.
        image: URL of the image for Label Studio.
        class_names: the model's class names; None: class numbers.
        from_name: name of the tag with the labels.
        to_name: name of the tag with the image.

    Raises:
        OutputNotRequested: one of the needed outputs is missing.
        M2FError: the image has 2^30 pixels or more, which a brush cannot have.
    """
    height, width = result.size
    if result.has_masks and height * width >= _MAX_PIXELS:
        raise M2FError(
            f"an image of {width} x {height} pixels cannot be a Label Studio brush, which counts 4 bytes a pixel in 32 "
            "bits. Ask for results without 'rle': their boxes become rectangles"
        )
    kind = "brushlabels" if result.has_masks else "rectanglelabels"
    regions = []
    for index, name in enumerate(result.names(class_names)):
        value = _brush(result.mask(index)) if result.has_masks else _rectangle(result.boxes[index], width, height)
        if value is None:
            continue
        regions.append(
            {
                "id": f"instance-{index}",
                "type": kind,
                "from_name": from_name,
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": float(result.scores[index]),
                "value": {**value, kind: [name]},
            }
        )
    score = float(result.scores.mean()) if len(result) else 0.0
    return {
        "data": {"image": image},
        "predictions": [{"model_version": "m2f", "score": score, "result": regions}],
    }


def _brush(mask: npt.NDArray[np.uint8]) -> dict[str, Any] | None:
    return {"format": "rle", "rle": encode_brush(mask).tolist()} if mask.any() else None


def _rectangle(box: npt.NDArray[np.float32], width: int, height: int) -> dict[str, Any] | None:
    """Return the box in percent of the image."""
    x1, y1, x2, y2 = box.tolist()
    if x2 <= x1 or y2 <= y1:
        return None
    sides = {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height}
    return {"x": 100 * x1 / width, "y": 100 * y1 / height, **sides, "rotation": 0}


def encode_brush(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Encode a mask as Label Studio's brush RLE.

    The format is that of `@thi.ng/rle-pack`, on the bytes of an RGBA picture, row by row. It is a string of bits, each
    field with its highest bit first:

        32 bits  number of bytes
         5 bits  bits of a word - 1
     4 x 4 bits  bits of a length - 1, for four sizes of length
        then, for each run:
          1 bit  1
         2 bits  which of the four sizes the length has
                 length - 1
                 word

    Args:
        mask: uint8 [H, W] of 0 and 1.

    Returns:
        uint8 [N].
    """
    pixels = mask.reshape(-1)
    ends = np.append(np.flatnonzero(np.diff(pixels)) + 1, len(pixels))
    lengths = _CHANNELS * np.diff(ends, prepend=0)
    words = pixels[ends - 1] * 255

    pieces = -(-lengths // _MAX_RUN)  # a longer run is split
    rest = lengths - _MAX_RUN * (pieces - 1)
    last = np.cumsum(pieces) - 1
    words = np.repeat(words, pieces)
    lengths = np.full(len(words), _MAX_RUN)
    lengths[last] = rest

    which = np.searchsorted(1 << _LENGTH_BITS, lengths)
    length_bits = _LENGTH_BITS[which]
    code = ((0b100 | which) << length_bits | (lengths - 1)) << _WORD_BITS | words
    head = (_CHANNELS * len(pixels)) << 21 | (_WORD_BITS - 1) << 16 | _packed_length_bits()
    bits = [_bits(np.array([head]), np.array([_HEADER_BITS])), _bits(code, 3 + length_bits + _WORD_BITS)]
    return np.packbits(np.concatenate(bits))


def _packed_length_bits() -> int:
    return int(sum((bits - 1) << shift for bits, shift in zip(_LENGTH_BITS.tolist(), (12, 8, 4, 0), strict=True)))


def _bits(codes: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return the last `sizes` [N] bits of each of `codes` [N], one after the other."""
    shifts = np.arange(sizes.max() - 1, -1, -1)
    return ((codes[:, None] >> shifts) & 1).astype(np.uint8)[shifts < sizes[:, None]]
