"""Limits of a request and of its answer; docs/limits.md explains each."""

from dataclasses import dataclass

MAX_BATCH_SIZE = 8
MAX_SIDE = 65_535  # pixels of an original image along one axis: the most that a JPEG can have

# defaults of limits that a repository may change
MAX_IMAGE_BYTES = 1 << 26  # an encoded image
MAX_PIXELS = 1 << 26  # width x height of an original image
MAX_INSTANCES = 1000  # instances of an image
MAX_MASK_BYTES = 1 << 27  # all dense masks of a response: 100 instances of 800 x 1333
MAX_MAP_BYTES = 1 << 28  # all label maps of one kind in a response: one image of MAX_PIXELS

# fixed limits
MAX_QUERIES = 1000  # queries of the logits
MAX_CLASSES = 10_000  # classes of the logits, without no-object
MAX_INPUT_PIXELS = 1 << 24  # width x height of an image inside the network input: 16 times those of COCO's models
MAX_WORK = 1 << 34  # queries x pixels of all original images of a request
MAX_RLE_BYTES = 1 << 26  # RLE of all instances of a response
MAX_PARAMETERS = 1 << 16  # characters of a request's parameters as JSON: thresholds of 1,203 classes are 30,000


@dataclass(frozen=True, kw_only=True)
class WorkLimits:
    """How much work the instances of one image may cause.

    Attributes:
        candidates: query-class pairs that pass the class score threshold.
        compared_candidates: candidates that NMS or the cap per class visits one by one.
        compared_edges: edges that NMS reads: the sum over classes of the edges of each mask x masks of the class.
        edges: positions in all masks where a run of pixels begins or ends, down the columns.
        doubts: pixels of all masks that rounding decides; such a pixel takes 100 times as long as another.
    """

    candidates: int = 1 << 20
    compared_candidates: int = 10_000
    compared_edges: int = 1 << 31
    edges: int = 1 << 26
    doubts: int = 1 << 27


WORK_LIMITS = WorkLimits()
