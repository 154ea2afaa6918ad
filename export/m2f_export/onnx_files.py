"""ONNX files: the names of an engine's tensors, reading and running a file, and what every graph here must be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from m2f_export.export_errors import ExportError, reason
from m2f_export.files import check_file

INPUT, OUTPUTS = "input", ("cls_logits", "mask_logits")
OPSET = 17  # GridSample came with 16, LayerNormalization with 17
MAX_INPUT_SIDE = 8192  # pixels: of a larger input the masks alone take gigabytes


def load_onnx(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read an ONNX file.

    Args:
        path: the file.
        weights: whether to read weights that are in files of their own.

    Raises:
        ExportError: the file cannot be read, or is not an ONNX model; or a file of its weights is missing.
    """
    check_file(path)
    try:
        model = onnx.load(path, load_external_data=False)
        names = external_files(model)
        if weights:
            for name in names:
                check_file(path.parent / name)
            load_external_data_for_model(model, str(path.parent))
    except ExportError as error:
        raise ExportError(f"{path} needs the file of its weights: {error}") from error
    except Exception as error:  # protobuf, and ONNX's own checks of what the file says of its weights
        raise ExportError(f"{path} is not an ONNX model: {reason(error)}") from error
    if not model.graph.node:
        raise ExportError(f"{path} is not an ONNX model: there is no graph in it")
    return model


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Return every node of a graph, and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes_of(inner)


def external_files(model: onnx.ModelProto) -> dict[str, int]:
    """Return the weights files beside the graph, and how many bytes each must have."""
    constants = [a.t for node in nodes_of(model.graph) for a in node.attribute if a.HasField("t")]
    needed: dict[str, int] = {}
    for tensor in (*model.graph.initializer, *constants):
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            end = (info.offset or 0) + (info.length or 0)
            needed[info.location] = max(needed.get(info.location, 0), end)
    return needed


def open_session(model: Path | bytes) -> ort.InferenceSession:
    """Load an ONNX model, a file or serialised, into ONNX Runtime on the CPU.

    Raises:
        ExportError: ONNX Runtime does not load the model.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # one of several engines in this process
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ExportError(f"ONNX Runtime does not load the graph: {reason(error)}") from error


def check_graph(model: onnx.ModelProto) -> None:
    """Refuse a graph that plain TensorRT or ONNX Runtime could not load.

    Raises:
        ExportError: the graph holds custom operators, or ONNX's own checker refuses the graph.
    """
    custom = sorted(
        {f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    )
    if custom:
        raise ExportError(f"the graph holds custom operators: {', '.join(custom)}; allowed: those of ONNX itself")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ExportError(f"ONNX's checker refuses the graph: {reason(error)}") from error


def is_half(model: onnx.ModelProto) -> bool:
    """Return whether the model has weights in half precision."""
    return any(tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for tensor in model.graph.initializer)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that the model uses; 0: none is stated."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def tensor_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of each input and output by name; None where an axis is free."""
    values = (*model.graph.input, *model.graph.output)
    return {value.name: tuple(map(side, value.type.tensor_type.shape.dim)) for value in values}


def side(axis: onnx.TensorShapeProto.Dimension) -> int | None:
    """Return the length of an axis; None if the axis is free, which some exporters write as 0 or -1."""
    return axis.dim_value if axis.dim_value > 0 else None


def check_input_size(size: tuple[int, int], where: str) -> None:
    """Refuse an input that no memory holds.

    Raises:
        ExportError: height or width is above `MAX_INPUT_SIDE`.
    """
    if max(size) > MAX_INPUT_SIDE:
        raise ExportError(f"{where}: an input of {size} (height, width); allowed: up to {MAX_INPUT_SIDE} pixels a side")
