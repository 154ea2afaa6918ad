"""An ONNX file: whether it is complete, fits the engine's contract, and works for more than one image.

The graph's statements are read from the file. Batch and mask size are tried on ONNX Runtime where the model is small
enough: a graph can state a free batch and still hold the batch size of its trace (open-mmlab/mmdeploy#2920).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from m2f.contract import RAW_OUTPUTS
from m2f_export.doctor import catalogue
from m2f_export.doctor.file_checks import check_content
from m2f_export.doctor.findings import Finding, listed, megabytes
from m2f_export.doctor.onnx_trial import Trial, try_batches
from m2f_export.export_errors import ExportError
from m2f_export.onnx_files import INPUT, external_files, load_onnx, nodes_of, opset_of, side

HEAD_INPUTS = ("img_shape", "ori_shape")
HEAD_OUTPUTS = ("scores", "labels", "boxes", "masks")  # a graph that holds the head
GRID_SAMPLE_OPSET = 16
GRID_SAMPLER = "mmdeploy::grid_sampler"  # MMDeploy writes it at every opset
TRIAL_BYTES, TRIAL_PIXELS = 300_000_000, 1 << 22  # larger graphs and inputs are not run
_STANDARD_DOMAINS = ("", "ai.onnx")
_CHANNELS = ((3,), (1,), (None,))  # RGB, grey, free
_AXES = {"cls_logits": "N, Q, C+1", "mask_logits": "N, Q, h, w"}

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Value:
    """An input or output of the graph: ONNX's name of the type (`UINT8`, `FLOAT`) and the shape, None where free."""

    dtype: str
    shape: Shape | None


@dataclass(frozen=True)
class Graph:
    """What the rest of a repository has to agree with.

    Attributes:
        path: the ONNX file.
        inputs, outputs: the graph's tensors by name.
        trial: how ONNX Runtime ran the graph; None where the graph was not run.
    """

    path: Path
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    trial: Trial | None = None

    @property
    def batch(self) -> int | None:
        """The batch size that the input is fixed to; None if the batch is free."""
        shape = self.inputs[INPUT].shape if INPUT in self.inputs else None
        return shape[0] if shape else None

    @property
    def input_size(self) -> tuple[int | None, int | None]:
        """Height and width of the input; None if free or unknown."""
        value = self.inputs.get(INPUT)
        if value is None or value.shape is None or len(value.shape) != 4:
            return None, None
        first = 1 if value.dtype == "UINT8" else 2
        return value.shape[first], value.shape[first + 1]

    def output_shape(self, name: str) -> Shape | None:
        """Return the shape of an output: of the run if there was one, else as the graph states it."""
        if self.trial is not None and name in self.trial.outputs:
            return self.trial.outputs[name]
        return self.outputs[name].shape if name in self.outputs else None


def check_onnx(path: Path, *, trial_bytes: int = TRIAL_BYTES) -> tuple[list[Finding], Graph | None]:
    """Check an ONNX file by itself.

    Args:
        path: the file.
        trial_bytes: largest model that is run on ONNX Runtime, weights included.

    Returns:
        The findings, and the graph's inputs and outputs; None where the file cannot be read.
    """
    if found := check_content(path):
        return found, None
    try:
        model = load_onnx(path, weights=False)
    except ExportError as failure:
        return [catalogue.ONNX_UNREADABLE(path, reason=failure)], None
    if broken := [*_external_data(path, model)] or [*_invalid(path, model)]:
        return broken, None
    initialized = {tensor.name for tensor in model.graph.initializer}
    graph = Graph(
        path=path,
        inputs={value.name: _value(value) for value in model.graph.input if value.name not in initialized},
        outputs={value.name: _value(value) for value in model.graph.output},
    )
    findings = [*_operators(path, model), *_inputs(graph), *_outputs(graph)]
    if model.ByteSize() <= trial_bytes:
        findings += _double_grid_sample(path, model)
    if not any(finding.level == "error" for finding in findings):
        trial_findings, trial = _try(graph, model, trial_bytes)
        findings += trial_findings
        graph = replace(graph, trial=trial)
    return [*findings, *_mask_size(graph, model)], graph


def _external_data(path: Path, model: onnx.ModelProto) -> Iterator[Finding]:
    for weights, needed in external_files(model).items():
        file = path.parent / weights
        this = {"name": path.name, "weights": weights, "folder": path.parent}
        if not file.is_file():
            yield catalogue.EXTERNAL_DATA_MISSING(path, **this)
        elif found := check_content(file):
            yield from found
        elif (size := file.stat().st_size) < needed:
            yield catalogue.EXTERNAL_DATA_TRUNCATED(path, **this, size=size, needed=needed)


def _invalid(path: Path, model: onnx.ModelProto) -> Iterator[Finding]:
    """Run onnx's checker, except on custom operators, which the checker does not know anyway."""
    if _custom_operators(model):
        return
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as failure:
        yield catalogue.ONNX_INVALID(path, reason=_first_line(failure))


def _custom_operators(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators that are neither standard nor functions of the model itself."""
    own = {(function.domain, function.name) for function in model.functions}
    return Counter(
        f"{node.domain or 'ai.onnx'}::{node.op_type}"
        for node in nodes_of(model.graph)
        if (node.domain, node.op_type) not in own
        and not (node.domain in _STANDARD_DOMAINS and onnx.defs.has(str(node.op_type)))  # bytes if not UTF-8
    )


def _operators(path: Path, model: onnx.ModelProto) -> Iterator[Finding]:
    if 0 < (opset := opset_of(model)) < GRID_SAMPLE_OPSET:
        yield catalogue.ONNX_OPSET(path, opset=opset)
    if not (custom := _custom_operators(model)):
        return
    operators = listed(f"{name} (x{count})" for name, count in sorted(custom.items()))
    if all(name.startswith("com.microsoft::") for name in custom):
        yield catalogue.ONNXRUNTIME_OPERATOR(path, operators=operators)
    elif set(custom) == {GRID_SAMPLER}:
        yield catalogue.GRID_SAMPLER_OP(path, operators=operators, name=path.name)
    else:
        yield catalogue.CUSTOM_OP(path, operators=operators)


def _double_grid_sample(path: Path, model: onnx.ModelProto) -> Iterator[Finding]:
    samplers = [node for node in model.graph.node if node.op_type == "GridSample"]
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph if samplers else model.graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return
    typed = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
    typed |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    wrong = [
        node.name or node.output[0]
        for node in samplers
        if any(typed.get(name) == onnx.TensorProto.DOUBLE for name in node.input)
    ]
    if wrong:
        nodes = listed(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        yield catalogue.FLOAT64_GRID_SAMPLE(path, count=len(wrong), nodes=nodes)


def _inputs(graph: Graph) -> Iterator[Finding]:
    expected = {INPUT, *HEAD_INPUTS} if _has_head(graph.outputs) else {INPUT}
    if INPUT not in graph.inputs or not set(graph.inputs) <= expected:
        yield catalogue.ONNX_INPUT_NAMES(graph.path, names=listed(graph.inputs))
        return
    value = graph.inputs[INPUT]
    shape = value.shape or ()
    if value.dtype == "FLOAT16":
        yield catalogue.HALF_IO(graph.path, name=INPUT)
    hwc, chw = value.dtype == "UINT8" and shape[3:] in _CHANNELS, shape[1:2] in _CHANNELS
    if len(shape) != 4 or not (hwc or (value.dtype in ("FLOAT", "FLOAT16") and chw)):
        yield catalogue.INPUT_LAYOUT(graph.path, dtype=value.dtype, shape=list(shape))
    elif value.dtype == "FLOAT":
        height, width = graph.input_size[0] or 800, graph.input_size[1] or 1344
        pixels = height * width * (shape[1] or 3)
        floats, small = megabytes(4 * pixels), megabytes(pixels)
        yield catalogue.FLOAT_INPUT(graph.path, floats=floats, bytes=small, height=height, width=width)
    for axis, size in zip("HW", graph.input_size, strict=True):
        if size is not None and size % 32:
            yield catalogue.ONNX_INPUT_SIZE(graph.path, axis=axis, size=size)
    if graph.batch is not None:
        yield catalogue.ONNX_BATCH_FIXED(graph.path, batch=graph.batch)


def _has_head(outputs: dict[str, Value]) -> bool:
    return set(HEAD_OUTPUTS) <= outputs.keys()


def _outputs(graph: Graph) -> Iterator[Finding]:
    path, outputs = graph.path, list(RAW_OUTPUTS)
    if _has_head(graph.outputs):
        yield catalogue.HEAD_KEPT(path, names=listed(graph.outputs))
    elif missing := [name for name in RAW_OUTPUTS if name not in graph.outputs]:
        yield catalogue.ONNX_OUTPUT_NAMES(path, missing=listed(missing), names=listed(graph.outputs), outputs=outputs)
    else:
        for name in RAW_OUTPUTS:
            if graph.outputs[name].dtype == "FLOAT16":
                yield catalogue.HALF_LOGITS(path, name=name)
            shape, axes = graph.outputs[name].shape, _AXES[name]
            if shape is not None and len(shape) != len(axes.split(",")):
                this = {"name": name, "rank": len(shape), "shape": list(shape)}
                yield catalogue.OUTPUT_RANK(path, **this, axes=axes, outputs=outputs)


def _try(graph: Graph, model: onnx.ModelProto, trial_bytes: int) -> tuple[list[Finding], Trial | None]:
    size = graph.path.stat().st_size + sum(external_files(model).values())
    pixels = (graph.batch or 1) * math.prod(length or 1 for length in graph.input_size)
    if size > trial_bytes or pixels > TRIAL_PIXELS:
        limits = {"max_size": megabytes(trial_bytes), "max_pixels": TRIAL_PIXELS}
        return [catalogue.NOT_RUN(graph.path, size=megabytes(size), pixels=pixels, **limits)], None
    trial = try_batches(graph.path, graph.inputs[INPUT].dtype, graph.inputs[INPUT].shape or ())
    if not trial.failure:
        return [], trial
    baked = trial.batch > 1 and graph.batch is None
    entry = catalogue.BATCH_BAKED if baked else catalogue.ONNXRUNTIME_REFUSES
    return [entry(graph.path, batch=trial.batch, reason=_first_line(trial.failure))], trial


def _mask_size(graph: Graph, model: onnx.ModelProto) -> Iterator[Finding]:
    shape = graph.output_shape("mask_logits")
    if shape is None or len(shape) != 4:
        return
    written = graph.input_size
    height, width = graph.trial.size if graph.trial is not None else (written[0] or 800, written[1] or 1344)
    known = None not in shape[2:]
    if shape[2:] == (height, width) if known else _made_by_resize(model, "mask_logits"):
        queries = shape[1] or 100
        yield catalogue.FULL_SIZE_MASKS(
            graph.path,
            example="" if known and shape[1] is not None else "such as ",
            queries=queries,
            height=height,
            width=width,
            full=megabytes(queries * height * width * 4),
            small=megabytes(queries * -(-height // 4) * -(-width // 4) * 4),
        )


def _made_by_resize(model: onnx.ModelProto, output: str) -> bool:
    """Return whether an upsampling is the last step before an output."""
    maker = {name: node for node in model.graph.node for name in node.output}
    node = maker.get(output)
    while node is not None and node.op_type in ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Slice"):
        node = maker.get(node.input[0])
    return node is not None and node.op_type in ("Resize", "Upsample")


def _value(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if not tensor.HasField("shape"):
        return Value(dtype, None)
    return Value(dtype, tuple(map(side, tensor.shape.dim)))


def _first_line(failure: object) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0][:300]
