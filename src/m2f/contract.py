"""The public names: models, tensors, and the groups of outputs.

Everything that crosses Triton is named here once. The configurations under `model_repository/` repeat these names, and
a test compares the two. Shapes are without the batch dimension; `-1` is a free dimension.
"""

from dataclasses import dataclass

PUBLIC_MODEL = "mask2former"  # the name of an export that is given no other; `m2f export --name`
PUBLIC_TENSOR_MODEL = "mask2former_tensor"

# The models of an export NAME: the ensembles NAME and NAME_tensor, and NAME_<step> for each of these
STEPS: tuple[str, ...] = ("preprocess", "engine", "postprocess", "masks", "panoptic", "semantic", "raw")
TENSOR = "tensor"
HEAD, HEAD_ENGINE = "head", "head_engine"  # with `m2f export --head`: an ensemble and its engine

CANARY_ID = "canary"  # request id of the requests with which `m2f serve` checks itself; the metrics leave them out


def model_name(name: str, step: str) -> str:
    """Return the name of one model of an export.

    Only what writes a repository composes names; to find the steps of a model, read `m2f.ensembles.read_ensemble`.

    Args:
        name: name of the export, which is that of its public ensemble.
        step: one of `STEPS`, `TENSOR`, `HEAD` or `HEAD_ENGINE`.
    """
    return f"{name}_{step}"


def models_of(name: str, *, head: bool) -> tuple[str, ...]:
    """Return the names of all models of an export; its public ensemble is the first.

    Args:
        name: name of the export.
        head: whether the export has a graph that includes its head.
    """
    steps = (TENSOR, *STEPS, *((HEAD, HEAD_ENGINE) if head else ()))
    return (name, *(model_name(name, step) for step in steps))


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the contract.

    Attributes:
        name: name of the tensor in Triton.
        datatype: KServe v2 datatype (`FP32`, `INT32`, `UINT8`, `BYTES`).
        dims: shape without the batch dimension; -1 is free.
        group: model, of `STEPS`, that makes the tensor.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    group: str


# K instances, Q queries, C classes, H x W the original image, h x w the engine's masks (stride 4)
OUTPUTS: tuple[TensorSpec, ...] = (
    TensorSpec("num_instances", "INT32", (1,), "postprocess"),  # how many rows are valid
    TensorSpec("scores", "FP32", (-1,), "postprocess"),  # class score x mask score, descending
    TensorSpec("labels", "INT32", (-1,), "postprocess"),  # class index, 0-based
    TensorSpec("boxes", "FP32", (-1, 4), "postprocess"),  # x1 y1 x2 y2 in original-image pixels, half-open
    TensorSpec("areas", "INT32", (-1,), "postprocess"),  # mask pixels
    TensorSpec("queries", "INT32", (-1,), "postprocess"),  # the query each instance came from
    TensorSpec("rle", "BYTES", (-1,), "postprocess"),  # COCO compressed RLE counts of the full-size mask
    TensorSpec("size", "INT32", (2,), "postprocess"),  # h, w of the original image
    TensorSpec("class_names", "BYTES", (1,), "postprocess"),  # JSON list of the class names, in the order of the labels
    TensorSpec("masks", "UINT8", (-1, -1, -1), "masks"),  # dense 0/1 masks [K, H, W]
    TensorSpec("packed_masks", "UINT8", (-1, -1, -1), "masks"),  # the same, a bit a pixel [K, H, ceil(W / 8)]
    TensorSpec("panoptic", "INT32", (-1, -1), "panoptic"),  # segment of each pixel [H, W], 0 is void
    TensorSpec("segments", "BYTES", (1,), "panoptic"),  # JSON list of the segments, as COCO panoptic's segments_info
    TensorSpec("semantic", "INT32", (-1, -1), "semantic"),  # class index of each pixel [H, W]
    TensorSpec("cls_logits", "FP32", (-1, -1), "raw"),  # engine output [Q, C+1]
    TensorSpec("mask_logits", "FP32", (-1, -1, -1), "raw"),  # engine output [Q, h, w]
)

CLASS_NAMES = "class_names"  # the same in every answer, so it is sent only to those who ask for it
STRUCTURED_OUTPUTS: tuple[str, ...] = tuple(
    t.name for t in OUTPUTS if t.group == "postprocess" and t.name != CLASS_NAMES
)
PANOPTIC_OUTPUTS: tuple[str, ...] = tuple(t.name for t in OUTPUTS if t.group == "panoptic")
RAW_OUTPUTS: tuple[str, ...] = tuple(t.name for t in OUTPUTS if t.group == "raw")
