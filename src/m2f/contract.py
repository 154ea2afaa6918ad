"""The public names: models, tensors, and the request parameters a client may send.

Everything that crosses Triton is named here once; the configurations under `model_repository/` repeat
these names and a test holds the two together. Shapes are without the batch dimension, `-1` is free.
"""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

PUBLIC_MODEL = "mask2former"
PUBLIC_TENSOR_MODEL = "mask2former_tensor"

CANARY_ID = "canary"  # request id of what `m2f serve` asks itself: no traffic, so it is not counted

MAX_BATCH_SIZE = 8
MAX_SIDE = 65_535  # pixels of an original image along one axis: as many as a JPEG can have

# limits that a repository may set otherwise: docs/limits.md
MAX_IMAGE_BYTES = 1 << 26  # of an encoded image
MAX_PIXELS = 1 << 26  # of an original image
MAX_INSTANCES = 1000  # of an image
MAX_MASK_BYTES = 1 << 27  # dense masks of one response: 100 instances of 800 x 1333
MAX_MAP_BYTES = 1 << 28  # a label map of one response: an image of MAX_PIXELS

# and limits that are fixed
MAX_QUERIES = 1000  # of logits
MAX_CLASSES = 10_000  # of logits, without no-object
MAX_WORK = 1 << 34  # queries x pixels of all original images of a request
MAX_CANDIDATES = 1 << 20  # of an image
MAX_COMPARED_CANDIDATES = 10_000  # of an image, where NMS or the cap per class goes through them one by one
MAX_COMPARED_EDGES = 1 << 31  # of NMS: for each mask those of all of its class
MAX_RLE_BYTES = 1 << 26  # of all instances of one response
MAX_EDGES = 1 << 26  # where runs of pixels begin and end, of an image's masks before scores are final
MAX_DOUBTS = 1 << 27  # pixels of an image's masks that rounding decides, which takes a hundred times as long
MAX_PARAMETERS = 1 << 16  # characters of a request's parameters as JSON: thresholds of 1,203 classes are 30,000


ErrorKind = Literal[
    "image_format",  # not an image, or of a format that is not read
    "image_damaged",
    "image_too_large",
    "parameter",
    "tensor",  # shapes or values of tensors that do not fit together
    "output_too_large",
]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)


class InputError(ValueError):
    """What a client sent cannot be used; the message names it and says what is allowed.

    Attributes:
        kind: what was wrong, in a word; errors are counted by it.
    """

    def __init__(self, message: str, *, kind: ErrorKind = "tensor") -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def of_image(index: int, count: int) -> Iterator[None]:
    """Let an `InputError` say which image of a request it is about, where there are several."""
    try:
        yield
    except InputError as error:
        if count == 1:
            raise
        raise InputError(f"image {index} of {count}: {error}", kind=error.kind) from error


class EngineError(RuntimeError):
    """What the engine made of a good input cannot be used."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: object) -> str:
    """Return a value for an error message, its middle left out where it is long: gRPC carries 8 kB of them."""
    return _SHORT.repr(value)


@dataclass(frozen=True)
class Tensor:
    """One tensor of the contract.

    Attributes:
        name: the tensor's name in Triton.
        datatype: KServe v2 datatype (`FP32`, `INT32`, `UINT8`, `BYTES`).
        dims: shape without the batch dimension; -1 is free. K instances, Q queries, C classes,
            H x W the original image, h x w the engine's masks (stride 4).
        group: the ensemble step that makes it.
        meaning: one line for people.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    group: str
    meaning: str


OUTPUTS: tuple[Tensor, ...] = (
    Tensor("num_instances", "INT32", (1,), "postprocess", "how many rows are valid"),
    Tensor("scores", "FP32", (-1,), "postprocess", "class score x mask score, descending"),
    Tensor("labels", "INT32", (-1,), "postprocess", "class index, 0-based"),
    Tensor("boxes", "FP32", (-1, 4), "postprocess", "x1 y1 x2 y2 in original-image pixels, half-open"),
    Tensor("areas", "INT32", (-1,), "postprocess", "mask pixels"),
    Tensor("queries", "INT32", (-1,), "postprocess", "the query each instance came from"),
    Tensor("rle", "BYTES", (-1,), "postprocess", "COCO compressed RLE counts of the full-size mask"),
    Tensor("size", "INT32", (2,), "postprocess", "h, w of the original image"),
    Tensor("masks", "UINT8", (-1, -1, -1), "masks", "dense 0/1 masks [K, H, W]"),
    Tensor("packed_masks", "UINT8", (-1, -1, -1), "packed_masks", "the same, a bit a pixel [K, H, ceil(W / 8)]"),
    Tensor("panoptic", "INT32", (-1, -1), "panoptic", "segment of each pixel [H, W], 0 is void"),
    Tensor("segments", "BYTES", (1,), "panoptic", "JSON list of the segments, as COCO panoptic's segments_info"),
    Tensor("semantic", "INT32", (-1, -1), "semantic", "class index of each pixel [H, W]"),
    Tensor("cls_logits", "FP32", (-1, -1), "raw", "engine output [Q, C+1]"),
    Tensor("mask_logits", "FP32", (-1, -1, -1), "raw", "engine output [Q, h, w]"),
)

STRUCTURED_OUTPUTS: tuple[str, ...] = tuple(t.name for t in OUTPUTS if t.group == "postprocess")
PANOPTIC_OUTPUTS: tuple[str, ...] = tuple(t.name for t in OUTPUTS if t.group == "panoptic")
RAW_OUTPUTS: tuple[str, ...] = tuple(t.name for t in OUTPUTS if t.group == "raw")
