"""The post-processing as part of the graph: an engine that returns instances instead of logits.

It gives the results of `m2f.postprocess` with default semantics, in standard operators with static control flow. Both
bilinear stages and the crop between them are one matrix per axis and image, built in the graph from the sizes: a mask
at the original's size is `rows @ logits @ columns`. So a batch may hold images of different sizes. Unlike the Python
postprocess a graph cannot skip work: every candidate is sampled at full size, whatever its score.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import onnx
import onnxslim
import torch
from onnx import ModelProto, TensorProto, compose

from m2f_export.export_errors import ExportError
from m2f_export.onnx_files import OUTPUTS as LOGITS
from m2f_export.onnx_files import check_graph, opset_of, tensor_shapes

SHAPES = ("img_shape", "ori_shape")
OUTPUTS = ("num_instances", "scores", "labels", "boxes", "masks")
MASKS = ("full", "stride4")
OPSETS = range(13, 21)  # that torch's tracer can write and that have what the head needs

_QUERIES_AT_ONCE = 10  # sampled at full size together: bounds the memory, 43 MB a float tensor at 800 x 1333


class InstanceHead(torch.nn.Module):
    """Logits and sizes -> instances, rows best first: the padded rows of `m2f.batch.stack_instances`.

    Each image has K = min(top_k, Q x C) rows. The first `num_instances` rows are instances. The other rows, below the
    threshold, are padding: score 0, label -1, box and mask 0.
    """

    def __init__(
        self,
        *,
        top_k: int = 100,
        score_threshold: float = 0.0,
        masks: str = "full",
        mask_stride: int = 4,
        thing_classes: frozenset[int] | None = None,
    ) -> None:
        """Fix the graph's settings.

        Args:
            top_k: number of candidates taken from the Q x C class scores; each costs a full-size mask.
            score_threshold: smallest final score of an instance, 0..1.
            masks: `full`: 0/1 at the original's size; `stride4`: the mask logits of each row's query. Scores and boxes
                come from the full size in both cases.
            mask_stride: network-input pixels per mask cell along each axis.
            thing_classes: classes that have instances; candidates of other classes are padding. None: all classes.

        Raises:
            ExportError: a value is out of range.
        """
        super().__init__()
        if top_k < 1:
            raise ExportError(f"the head's top_k must be a whole number >= 1; got {top_k}")
        if not 0 <= score_threshold <= 1:
            raise ExportError(f"the head's score_threshold must be a number from 0 to 1; got {score_threshold}")
        if masks not in MASKS:
            raise ExportError(f"the head's masks must be one of: {', '.join(MASKS)}; got {masks!r}")
        if mask_stride < 1:
            raise ExportError(f"the head's mask_stride must be a whole number >= 1; got {mask_stride}")
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.masks = masks
        self.mask_stride = mask_stride
        self.thing_classes = thing_classes

    def forward(
        self, cls_logits: torch.Tensor, mask_logits: torch.Tensor, img_shape: torch.Tensor, ori_shape: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Score, sort and sample.

        Args:
            cls_logits: float32 [N, Q, C+1], no-object last.
            mask_logits: float32 [N, Q, h, w], not upsampled.
            img_shape: int32 [N, 2], height and width of each image inside the padded network input.
            ori_shape: int32 [N, 2], height and width of each original image.

        Returns:
            num_instances int32 [N, 1], scores float32 [N, K], labels int32 [N, K], boxes float32 [N, K, 4] (x1 y1 x2
            y2, original pixels, half-open) and masks: uint8 [N, K, H, W], padded to the largest image, or float32
            [N, K, h, w].
        """
        scores, labels, sampled = self._candidates(cls_logits)
        if scores.shape[1] < cls_logits.shape[1]:  # fewer rows than queries: sample the rows' masks only
            mask_logits, sampled = _take(mask_logits, sampled), torch.arange(scores.shape[1]).expand_as(sampled)
        rows, columns = self._operators(mask_logits, img_shape.clamp(min=1), ori_shape.clamp(min=1))
        parts = [_sample(part, rows, columns) for part in mask_logits.split(_QUERIES_AT_ONCE, dim=1)]
        mask_scores, boxes, inside = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))

        scores = scores * _take(mask_scores, sampled)
        passed = scores >= self.score_threshold  # NaN fails, too
        if self.thing_classes is not None:
            classes = cls_logits.shape[2] - 1
            passed = passed & torch.tensor([label in self.thing_classes for label in range(classes)])[labels]
        scores = torch.where(passed, scores, -1.0)
        scores, order = scores.topk(scores.shape[1])
        valid = scores >= 0
        labels, sampled = labels.gather(1, order), sampled.gather(1, order)
        return (
            valid.sum(dim=1, keepdim=True).int(),
            scores.clamp(min=0),
            torch.where(valid, labels, -1).int(),
            torch.where(valid[..., None], _take(boxes, sampled), 0.0),
            self._masks(_take(inside if self.masks == "full" else mask_logits, sampled), valid[..., None, None]),
        )

    def _candidates(self, cls_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Take the best query-class pairs: class scores, labels and queries [N, K]. ONNX keeps ties in order."""
        queries, classes = cls_logits.shape[1], cls_logits.shape[2] - 1
        scores = cls_logits.softmax(dim=-1)[..., :-1].flatten(1)
        scores = scores.masked_fill(scores.isnan(), -torch.inf)  # a query with NaN must not disturb the order
        scores, index = scores.topk(min(self.top_k, queries * classes))
        label_of = torch.arange(classes).repeat(queries)
        query_of = torch.arange(queries).repeat_interleave(classes)
        return scores, label_of[index], query_of[index]

    def _operators(
        self, mask_logits: torch.Tensor, img_shape: torch.Tensor, ori_shape: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the matrices [N, H, h] and [N, W, w] that sample the masks at the size of the largest original."""
        rows, columns = (
            _axis_operator(
                cells=mask_logits.shape[2 + axis],
                stride=self.mask_stride,
                valid=img_shape[:, axis, None],
                original=ori_shape[:, axis, None],
            )
            for axis in (0, 1)
        )
        return rows, columns

    def _masks(self, rows: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return (rows & valid).to(torch.uint8) if self.masks == "full" else torch.where(valid, rows, 0.0)


def _axis_operator(*, cells: int, stride: int, valid: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Compose cells -> padded network input -> crop -> original along one axis, as `m2f.geometry.mask_taps`.

    Args:
        cells: size of the mask logits.
        stride: padded network input / cells.
        valid: int32 [N, 1], part of the network input that holds the image.
        original: int32 [N, 1], size of the original.

    Returns:
        float32 [N, largest original, cells]; the rows beyond an image's own size are zero.
    """
    largest: Any = original.max()  # stays a tensor: the graph computes it
    output = torch.arange(largest)
    scale = valid.float() / original.float()
    centre = ((output.float() + 0.5) * scale - 0.5).clamp(min=0).minimum(valid.float() - 1)  # [N, out]
    low = centre.floor()
    fraction = (centre - low)[..., None]  # 0 at the last valid position
    weight = (1 - fraction) * _cell_weights(low, cells, stride) + fraction * _cell_weights(low + 1, cells, stride)
    return weight * (output < original)[..., None]


def _cell_weights(position: torch.Tensor, cells: int, stride: int) -> torch.Tensor:
    """Return the bilinear weights [N, out, cells] of the cells at positions [N, out] of the padded network input."""
    centre = ((position + 0.5) / stride - 0.5).clamp(min=0).clamp(max=cells - 1)
    return (1 - (centre[..., None] - torch.arange(cells)).abs()).relu()


def _sample(
    mask_logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample masks [N, q, h, w] at full size: mask scores [N, q], boxes [N, q, 4] and insides bool [N, q, H, W].

    Everything but the insides leaves in one tensor: a runtime then finishes and frees one part of the queries before
    it begins the next part.
    """
    logits = rows[:, None] @ (mask_logits @ columns.transpose(1, 2)[:, None])  # [N, q, H, W]
    # sigmoid(x) = 1/2 + tanh(x/2)/2, and tanh is 0 where the logit is not positive: the sum needs no mask
    excess = (0.5 * logits.relu()).tanh()
    inside = excess > 0
    pixels = inside.float()
    # sums of rows first: one float32 sum over a million pixels would lose digits
    row_pixels, column_pixels = pixels.sum(dim=3), pixels.sum(dim=2)
    area = row_pixels.sum(dim=2)
    score = 0.5 * (area + excess.sum(dim=3).sum(dim=2)) / (area + 1e-6)
    (x1, x2), (y1, y2) = _extent(column_pixels), _extent(row_pixels)
    numbers = torch.stack([score, x1, y1, x2, y2], dim=2)
    return numbers[..., 0], numbers[..., 1:], inside


def _extent(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and the last + 1 position [N, q] with a pixel, from counts [N, q, size]; 0, 0 without any."""
    position = torch.arange(pixels.shape[2]).float()
    end = torch.where(pixels > 0, position + 1, 0.0).amax(dim=2)
    begin = torch.where(pixels > 0, position, torch.inf).amin(dim=2)
    return begin.minimum(end), end


def _take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Take [N, K] of [N, S, ...] as one Gather of whole rows: torch.gather's index would be larger than the masks."""
    batch, size = values.shape[:2]
    flat = index + torch.arange(batch)[:, None] * size
    return values.flatten(0, 1)[flat]


def attach_head(engine: ModelProto, head: InstanceHead) -> ModelProto:
    """Append the head to an engine's logits.

    Args:
        engine: an ONNX graph with the outputs cls_logits float32 [N, Q, C+1] and mask_logits float32 [N, Q, h, w];
            Q and C fixed. The graph is not changed.
        head: the head to append.

    Returns:
        A graph: the engine's inputs and `img_shape`, `ori_shape` int32 [N, 2] -> `OUTPUTS`, as
        `InstanceHead.forward` returns them.

    Raises:
        ExportError: the engine lacks these outputs, or the head cannot be written in its opset.
    """
    shapes = tensor_shapes(engine)
    types = {output.name: output.type.tensor_type.elem_type for output in engine.graph.output}
    for name, rank in zip(LOGITS, (3, 4), strict=True):
        if name not in types:
            raise ExportError(f"a head needs an engine with the output {name}; this one has: {', '.join(types)}")
        if types[name] != TensorProto.FLOAT or len(shapes[name]) != rank:
            found = f"{TensorProto.DataType.Name(types[name])} {list(shapes[name])}"
            raise ExportError(f"a head needs {name} as FLOAT with {rank} dimensions; this engine's is {found}")
    _, queries, columns = shapes["cls_logits"]
    if queries is None or columns is None:
        raise ExportError(f"a head needs cls_logits [N, Q, C+1] with fixed Q and C; got {list(shapes['cls_logits'])}")
    opset = opset_of(engine)
    if opset not in OPSETS:
        raise ExportError(f"a head can be attached to opsets {OPSETS[0]} to {OPSETS[-1]}; the engine's is {opset}")
    traced = _trace(head, queries=queries, columns=columns, opset=opset)
    traced.ir_version = engine.ir_version
    merged = compose.merge_models(engine, traced, io_map=[(name, name) for name in LOGITS])
    check_graph(merged)
    return merged


def _trace(head: InstanceHead, *, queries: int, columns: int, opset: int) -> ModelProto:
    """Return the head as ONNX, with a free batch and free mask sizes; inner names begin with `head/`."""
    example = (
        torch.zeros(2, queries, columns),
        torch.zeros(2, queries, 6, 8),
        torch.tensor([[24, 31], [17, 32]], dtype=torch.int32),
        torch.tensor([[48, 62], [50, 40]], dtype=torch.int32),
    )
    axes = {name: {0: "batch"} for name in (*LOGITS, *SHAPES, *OUTPUTS)}
    axes["mask_logits"] |= {2: "mask_height", 3: "mask_width"}
    axes["masks"] |= {2: "height", 3: "width"} if head.masks == "full" else {2: "mask_height", 3: "mask_width"}
    buffer: Any = io.BytesIO()  # `export` takes files too, its annotation does not say so
    with warnings.catch_warnings():
        # the values that the tracer fixes (Q, C, K) are meant to be fixed
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        torch.onnx.export(
            head.eval(), example, buffer, input_names=[*LOGITS, *SHAPES], output_names=list(OUTPUTS),
            dynamic_axes=axes, opset_version=opset, dynamo=False,
        )  # fmt: skip
    slim = onnxslim.slim(onnx.load_from_string(buffer.getvalue()))
    del slim.graph.value_info[:]  # value_info lists the outputs too, and add_prefix would rename them
    return compose.add_prefix(slim, "head/", rename_inputs=False, rename_outputs=False)
