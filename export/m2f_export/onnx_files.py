"""ONNX files: the names of an engine's tensors, reading a file, and what every graph here must be."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from m2f_export.export_errors import ExportError

INPUT, OUTPUTS = "input", ("cls_logits", "mask_logits")
OPSET = 17  # GridSample came with 16, LayerNormalization with 17


def load_onnx(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read an ONNX file.

    Args:
        path: the file.
        weights: whether to read weights that are in files of their own.

    Raises:
        ExportError: the file is missing, or is not an ONNX model.
    """
    try:
        model = onnx.load(path, load_external_data=weights)
    except FileNotFoundError as error:
        raise ExportError(f"{path}: no such file") from error
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise ExportError(f"{path} is not an ONNX model: {error}") from error
    if not model.graph.node:
        raise ExportError(f"{path} is not an ONNX model: there is no graph in it")
    return model


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
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's checker refuses the graph: {error}") from error


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that the model uses; 0: none is stated."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def tensor_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of each input and output by name; None where an axis is free."""
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output)
    }
