"""An ONNX file: is it whole, is it what the engine must be, and does it do so for more than one image.

What is written in the graph is read from it; batch and mask size are tried on ONNX Runtime where the model is small
enough, because a graph can say that its batch is free and still hold the traced one (open-mmlab/mmdeploy#2920).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from m2f.contract import RAW_OUTPUTS
from m2f_export.doctor.findings import Finding, check_content, error, listed, megabytes, note, warning
from m2f_export.doctor.onnx_trial import Trial, try_batches

INPUT = "input"
HEAD_INPUTS = ("img_shape", "ori_shape")
HEAD_OUTPUTS = ("scores", "labels", "boxes", "masks")  # a graph that holds the head
GRID_SAMPLE_OPSET = 16
GRID_SAMPLER = "mmdeploy::grid_sampler"  # MMDeploy writes it at every opset
TRIAL_BYTES, TRIAL_PIXELS = 300_000_000, 1 << 22  # what is larger is not run
_STANDARD_DOMAINS = ("", "ai.onnx")
_EXPORT = "export it with m2f export, which writes standard operators only"

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Value:
    """An input or output of the graph: numpy-like type name (`UINT8`, `FLOAT`) and shape, None where it is free."""

    dtype: str
    shape: Shape | None


@dataclass(frozen=True)
class Graph:
    """What the rest of a repository has to agree with.

    Attributes:
        path: the file.
        inputs, outputs: by name.
        trial: shapes as ONNX Runtime made them; None where the graph was not run.
    """

    path: Path
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    trial: Trial | None = None

    @property
    def batch(self) -> int | None:
        """The batch that the input is fixed to, or None."""
        shape = self.inputs[INPUT].shape if INPUT in self.inputs else None
        return shape[0] if shape else None

    @property
    def input_size(self) -> tuple[int | None, int | None]:
        """Height and width of the input; None where they are free or unknown."""
        value = self.inputs.get(INPUT)
        if value is None or value.shape is None or len(value.shape) != 4:
            return None, None
        first = 1 if value.dtype == "UINT8" else 2
        return value.shape[first], value.shape[first + 1]

    def output_shape(self, name: str) -> Shape | None:
        """Return the shape of an output: as it was run, else as it is written."""
        if self.trial is not None and name in self.trial.outputs:
            return self.trial.outputs[name]
        return self.outputs[name].shape if name in self.outputs else None


def check_onnx(path: Path) -> tuple[list[Finding], Graph | None]:
    """Check an ONNX file by itself.

    Returns:
        The findings, and what the graph takes and gives; None where it cannot be read.
    """
    if found := check_content(path):
        return found, None
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as failure:
        return [_unreadable(path, f"not an ONNX file, or a part of one: {failure}")], None
    if not model.graph.node:
        return [_unreadable(path, "not an ONNX file: no graph in it")], None
    broken = _external_data(path, model) or _invalid(path, model)
    if broken:
        return broken, None
    findings = [*_operators(path, model), *_opset(path, model), *_double_grid_sample(path, model)]
    initialized = {tensor.name for tensor in model.graph.initializer}
    graph = Graph(
        path=path,
        inputs={value.name: _value(value) for value in model.graph.input if value.name not in initialized},
        outputs={value.name: _value(value) for value in model.graph.output},
    )
    findings += [*_inputs(graph), *_outputs(graph)]
    if not any(finding.level == "error" for finding in findings):
        trial_findings, trial = _try(graph, model)
        findings += trial_findings
        graph = Graph(path, graph.inputs, graph.outputs, trial)
    return [*findings, *_mask_size(graph, model)], graph


def _unreadable(path: Path, what: str) -> Finding:
    why = "no runtime can load it"
    return error("onnx-unreadable", path, what, why=why, fix="copy the file again and compare sizes, or export again")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _weights(model: onnx.ModelProto) -> dict[str, int]:
    """Return the files that weights lie in beside the graph, and how many bytes each must have."""
    constants = [a.t for node in _nodes(model.graph) for a in node.attribute if a.HasField("t")]
    needed: dict[str, int] = {}
    for tensor in (*model.graph.initializer, *constants):
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            end = (info.offset or 0) + (info.length or 0)
            needed[info.location] = max(needed.get(info.location, 0), end)
    return needed


def _external_data(path: Path, model: onnx.ModelProto) -> list[Finding]:
    findings = []
    for location, size in _weights(model).items():
        file = path.parent / location
        why = f"weights of {path.name} lie in that file, and it must stand beside the ONNX under that very name"
        if not file.is_file():
            what, code = f"its weights file {location} is missing", "external-data-missing"
        elif file.stat().st_size < size:
            what = f"its weights file {location} has {file.stat().st_size} bytes; {size} are needed"
            code = "external-data-truncated"
        else:
            continue
        findings.append(error(code, path, what, why=why, fix=f"copy {location} to {path.parent}/ again"))
    return findings


def _invalid(path: Path, model: onnx.ModelProto) -> list[Finding]:
    """Let onnx's checker judge, on a graph whose custom operators it would not know anyway."""
    if any(domain for domain in _custom_operators(model)):
        return []
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as failure:
        what = f"onnx's checker refuses it: {_first_line(failure)}"
        return [error("onnx-invalid", path, what, why="a runtime will refuse it, or read it wrongly", fix=_EXPORT)]
    return []


def _custom_operators(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators that are neither standard nor functions of the model itself."""
    own = {(function.domain, function.name) for function in model.functions}
    return Counter(
        f"{node.domain or 'ai.onnx'}::{node.op_type}"
        for node in _nodes(model.graph)
        if (node.domain, node.op_type) not in own
        and not (node.domain in _STANDARD_DOMAINS and onnx.defs.has(node.op_type))
    )


def _operators(path: Path, model: onnx.ModelProto) -> list[Finding]:
    custom = _custom_operators(model)
    if not custom:
        return []
    names = listed(f"{name} (x{count})" for name, count in sorted(custom.items()))
    if all(name.startswith("com.microsoft::") for name in custom):
        why = "only ONNX Runtime knows them; TensorRT's parser does not"
        return [
            warning("onnxruntime-operator", path, f"operators of ONNX Runtime alone: {names}", why=why, fix=_EXPORT)
        ]
    why = "they need MMDeploy's plugin library in the server: neither Triton's ONNX Runtime nor its TensorRT has it"
    fix = "export the checkpoint: m2f export CONFIG CHECKPOINT --repository DIR writes standard operators only"
    if set(custom) == {GRID_SAMPLER}:
        fix = f"m2f export CONFIG {path.name} --repository DIR puts the standard GridSample in its place"
    return [error("custom-op", path, f"custom operators: {names}", why=why, fix=fix)]


def _opset(path: Path, model: onnx.ModelProto) -> list[Finding]:
    version = next((o.version for o in model.opset_import if o.domain in _STANDARD_DOMAINS), None)
    if version is None or version >= GRID_SAMPLE_OPSET:
        return []
    why = f"Mask2Former's deformable attention needs GridSample, which is standard from opset {GRID_SAMPLE_OPSET} on"
    return [warning("opset-too-old", path, f"opset {version}", why=why, fix="export with opset 17")]


def _double_grid_sample(path: Path, model: onnx.ModelProto) -> list[Finding]:
    samplers = [node for node in model.graph.node if node.op_type == "GridSample"]
    if not samplers or model.ByteSize() > TRIAL_BYTES:
        return []
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return []
    typed = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
    typed |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    wrong = [
        node.name or node.output[0]
        for node in samplers
        if any(typed.get(name) == onnx.TensorProto.DOUBLE for name in node.input)
    ]
    if not wrong:
        return []
    what = f"float64 in {len(wrong)} GridSample: {listed(wrong[:3])}{', ...' if len(wrong) > 3 else ''}"
    why = "ONNX Runtime has no float64 GridSample and TensorRT no float64 at all"
    fix = "cast the sampling grid to float32 before tracing; m2f export does"
    return [error("float64-grid-sample", path, what, why=why, fix=fix)]


def _inputs(graph: Graph) -> list[Finding]:
    expected = {INPUT, *HEAD_INPUTS} if _has_head(graph.outputs) else {INPUT}
    if INPUT not in graph.inputs or not set(graph.inputs) <= expected:
        what = f"its inputs are: {listed(graph.inputs)}; the engine has one, '{INPUT}'"
        why = "Triton maps tensors by name, so the ensemble cannot feed it"
        fix = "export again with input_names=['input']"
        return [error("input-names", graph.path, what, why=why, fix=fix)]
    value = graph.inputs[INPUT]
    shape = value.shape or ()
    findings = []
    if value.dtype == "FLOAT16":
        findings.append(_half(graph.path, INPUT))
    hwc, chw = value.dtype == "UINT8" and shape[3:] in ((3,), (None,)), shape[1:2] in ((3,), (None,))
    if len(shape) != 4 or not (hwc or (value.dtype in ("FLOAT", "FLOAT16") and chw)):
        what = f"input '{INPUT}' is {value.dtype} {list(shape)}"
        why = "the preprocessing makes UINT8 [N, H, W, 3] or FLOAT [N, 3, H, W], nothing else"
        findings.append(error("input-layout", graph.path, what, why=why, fix=_EXPORT))
    elif value.dtype == "FLOAT":
        what = f"takes float32 [3, H, W], normalised outside: {_input_bytes(graph.input_size)}"
        why = "four times the bytes to the engine, and normalisation on the CPU; it works, with layout float32_chw"
        fix = "m2f export writes a graph that takes uint8 [H, W, 3] and normalises by itself"
        findings.append(note("float-input", graph.path, what, why=why, fix=fix))
    for axis, size in zip("HW", graph.input_size, strict=True):
        if size is not None and size % 32:
            what = f"the input's {axis} is {size}, no multiple of 32"
            why = "the backbone halves it five times: mask cells and pixels no longer lie on one grid"
            findings.append(warning("input-size", graph.path, what, why=why, fix="export with multiples of 32"))
    if graph.batch is not None:
        what = f"the batch is fixed to {graph.batch}"
        why = "Triton can batch nothing, and refuses it in a model with max_batch_size > 0"
        fix = "export with a dynamic axis 0 for the input and every output"
        findings.append(warning("batch-fixed", graph.path, what, why=why, fix=fix))
    return findings


def _input_bytes(size: tuple[int | None, int | None]) -> str:
    height, width = size[0] or 800, size[1] or 1344
    pixels = height * width * 3
    return f"{megabytes(4 * pixels)} an image of {height} x {width} instead of {megabytes(pixels)}"


def _has_head(outputs: dict[str, Value]) -> bool:
    return set(HEAD_OUTPUTS) <= outputs.keys()


def _half(path: Path, name: str) -> Finding:
    what = f"'{name}' is FLOAT16"
    why = "the configurations and the Python steps say FP32, and Triton refuses the model"
    return error(
        "half-io", path, what, why=why, fix="keep input and outputs in float32 (keep_io_types) inside a half graph"
    )


def _outputs(graph: Graph) -> list[Finding]:
    if _has_head(graph.outputs):
        what = f"the graph holds the head: {listed(graph.outputs)}"
        why = "it gives instances by itself, so the postprocess step does not fit behind it"
        return [note("head-kept", graph.path, what, why=why, fix="serve it in a repository made by m2f export --head")]
    missing = [name for name in RAW_OUTPUTS if name not in graph.outputs]
    if missing:
        what = f"no output {listed(missing)}; its outputs are: {listed(graph.outputs)}"
        why = "Triton maps tensors by name: the engine must give cls_logits and mask_logits"
        fix = f"export again with output_names={list(RAW_OUTPUTS)!r}, in this order"
        return [error("output-names", graph.path, what, why=why, fix=fix)]
    findings = [_half(graph.path, name) for name in RAW_OUTPUTS if graph.outputs[name].dtype == "FLOAT16"]
    for name, axes in (("cls_logits", "N, Q, C+1"), ("mask_logits", "N, Q, h, w")):
        shape = graph.outputs[name].shape
        if shape is not None and len(shape) != len(axes.split(",")):
            what = f"{name} has {len(shape)} axes {list(shape)}; it is [{axes}]"
            why = "the names are given to the outputs in their order, so two may have changed places"
            fix = f"export again with output_names={list(RAW_OUTPUTS)!r}, in this order"
            findings.append(error("output-rank", graph.path, what, why=why, fix=fix))
    return findings


def _try(graph: Graph, model: onnx.ModelProto) -> tuple[list[Finding], Trial | None]:
    size = graph.path.stat().st_size + sum(_weights(model).values())
    pixels = math.prod(side or 1 for side in graph.input_size)
    if size > TRIAL_BYTES or pixels > TRIAL_PIXELS:
        what = f"not run: {megabytes(size)} and {pixels} pixels; at most {megabytes(TRIAL_BYTES)} and {TRIAL_PIXELS}"
        why = "whether its batch is really free and how large its masks are is only known where the graph says so"
        return [note("not-run", graph.path, what, why=why, fix="send it a batch of 2 once it is served")], None
    trial = try_batches(graph.path, graph.inputs[INPUT].dtype, graph.inputs[INPUT].shape or ())
    if not trial.failure:
        return [], trial
    if trial.batch <= 1 or graph.batch is not None:
        what = f"ONNX Runtime does not run it: {_first_line(trial.failure)}"
        why = "on the CPU the engine is ONNX Runtime, and a graph that it refuses is rarely taken by TensorRT"
        return [error("onnxruntime-refuses", graph.path, what, why=why, fix=_EXPORT)], trial
    what = f"the batch is baked in: axis 0 is free, but a batch of {trial.batch} fails: {_first_line(trial.failure)}"
    why = "Triton's dynamic batching joins requests, and then all of them fail or get each other's answer"
    fix = "m2f export rewrites what bakes it in; or max_batch_size: 1 and no dynamic_batching"
    return [error("batch-baked", graph.path, what, why=why, fix=fix)], trial


def _mask_size(graph: Graph, model: onnx.ModelProto) -> list[Finding]:
    shape = graph.output_shape("mask_logits")
    if shape is None or len(shape) != 4:
        return []
    written = graph.input_size
    size = graph.trial.size if graph.trial is not None else (written[0] or 800, written[1] or 1344)
    known = shape[2:] if None not in shape[2:] else None
    full = known == size if known is not None else _made_by_resize(model, "mask_logits")
    if not full:
        return []
    exact = None not in (shape[1], *shape[2:])
    queries = shape[1] or 100
    small = queries * -(-size[0] // 4) * -(-size[1] // 4) * 4
    what = (
        f"full-size masks: {'' if exact else 'such as '}{queries} x {size[0]} x {size[1]} in mask_logits, "
        f"{megabytes(queries * size[0] * size[1] * 4)} a response; at stride 4 it is {megabytes(small)}"
    )
    why = "sixteen times the memory and traffic, for pixels that the postprocessing can interpolate where it needs them"
    fix = "m2f export leaves the upsampling out; to serve it as it is, set mask_stride to 1 in mask2former_postprocess"
    return [warning("full-size-masks", graph.path, what, why=why, fix=fix)]


def _made_by_resize(model: onnx.ModelProto, output: str) -> bool:
    """Return whether an upsampling is the last thing that happens to an output."""
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
    return Value(dtype, tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim))


def _first_line(failure: object) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0][:300]
