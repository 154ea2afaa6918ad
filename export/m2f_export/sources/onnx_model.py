"""Adopt an existing ONNX file: one that MMDeploy made, or one of any origin with a description.

MMDeploy writes PyTorch's `grid_sample`, and for TensorRT also instance normalisation, as operators of its own. ONNX has
both (`GridSample` since opset 16), and plain TensorRT and ONNX Runtime load them. Nothing else is changed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from m2f_export.export_errors import ExportError, reason
from m2f_export.onnx_files import (
    INPUT,
    OPSET,
    OUTPUTS,
    check_graph,
    check_input_size,
    load_onnx,
    open_session,
    opset_of,
    tensor_shapes,
)
from m2f_export.sources.base import Source

_DOMAIN = "mmdeploy"
_TRIED_SIZE = (128, 160)  # of a graph that leaves its size free, rounded up to multiples of its divisor
_MODES, _PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")  # PyTorch's numbering
_LAYOUTS = {TensorProto.UINT8: "uint8_hwc", TensorProto.FLOAT: "float32_chw"}


def adopt_onnx(path: Path, source: Source, output: Path) -> Source:
    """Check a given graph, replace MMDeploy's operators and write it.

    Args:
        path: the ONNX file.
        source: what its configuration or description says (`describe_mmdet`, `describe_onnx`); the network is not
            needed.
        output: the file to write.

    Returns:
        The source with the graph's layout, input size and mask stride.

    Raises:
        ExportError: the file is not ONNX, its inputs or outputs are not those of the contract or of the source, it has
            operators that need a plugin, or ONNX Runtime does not run it.
    """
    model = load_onnx(path)
    _check_names(model, path)
    channels = source.preprocessing.channels
    layout, size = _input(model, channels, path)
    if layout != source.preprocessing.layout == "float32_chw":
        padding = f"{source.kind} pads with {source.preprocessing.float_pad_value}, which is no pixel"
        raise ExportError(f"{path} takes uint8, and {padding}; allowed: a graph that takes floats")
    size = size or source.preprocessing.input_size  # of a source that stretches
    try:
        model = _standard_operators(model)
    except Exception as error:  # the converter of opsets raises many types, and MMDeploy's attributes may be anything
        raise ExportError(f"{path}: its operators cannot be replaced by those of ONNX: {reason(error)}") from error
    check_graph(model)
    onnx.save(model, output)
    pad_value = source.preprocessing.pad_value if layout == "uint8_hwc" else (0,) * channels
    preprocessing = replace(source.preprocessing, layout=layout, input_size=size, pad_value=pad_value)
    source = replace(source, preprocessing=preprocessing)
    return replace(source, facts=replace(source.facts, mask_stride=_measured_stride(output, path, source)))


def graph_input(path: Path, channels: int) -> tuple[str, tuple[int, int] | None]:
    """Return the layout of a graph's input of 3 or 1 channels, and its height and width if they are fixed.

    Raises:
        ExportError: the file is not ONNX, or its inputs or outputs are not those of the contract.
    """
    model = load_onnx(path, weights=False)
    _check_names(model, path)
    return _input(model, channels, path)


def _check_names(model: onnx.ModelProto, path: Path) -> None:
    inputs = tuple(value.name for value in model.graph.input)
    outputs = tuple(value.name for value in model.graph.output)
    if inputs != (INPUT,) or set(outputs) != set(OUTPUTS):
        raise ExportError(
            f"{path} takes {', '.join(inputs)} and gives {', '.join(outputs)}; allowed: takes {INPUT} and gives "
            f"{', '.join(OUTPUTS)} (input_names and output_names of MMDeploy's onnx_config)"
        )


def _standard_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace MMDeploy's operators by ONNX's own."""
    if not any(node.domain == _DOMAIN and node.op_type in _STANDARD for node in model.graph.node):
        return model
    if opset_of(model) < OPSET:
        model = version_converter.convert_version(model, OPSET)
    for node in model.graph.node:
        if node.domain == _DOMAIN and node.op_type in _STANDARD:
            node.CopyFrom(_STANDARD[node.op_type](node))
    opsets = [entry for entry in model.opset_import if entry.domain != _DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    return model


def _grid_sample(node: onnx.NodeProto) -> onnx.NodeProto:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return helper.make_node(
        "GridSample",
        node.input,
        node.output,
        name=node.name,
        mode=_MODES[attributes.get("interpolation_mode", 0)],
        padding_mode=_PADDINGS[attributes.get("padding_mode", 0)],
        align_corners=attributes.get("align_corners", 0),
    )


def _instance_normalization(node: onnx.NodeProto) -> onnx.NodeProto:
    made = helper.make_node("InstanceNormalization", node.input, node.output, name=node.name)
    made.attribute.extend(attribute for attribute in node.attribute if attribute.name == "epsilon")
    return made


_STANDARD = {"grid_sampler": _grid_sample, "TRTInstanceNormalization": _instance_normalization}


def _input(model: onnx.ModelProto, channels: int, path: Path) -> tuple[str, tuple[int, int] | None]:
    """Return the layout, and the height and width if they are fixed."""
    kind = model.graph.input[0].type.tensor_type.elem_type
    shape = tensor_shapes(model)[INPUT]
    layout = _LAYOUTS.get(kind, "")
    axis = {"uint8_hwc": 3, "float32_chw": 1}.get(layout)
    if axis is None or len(shape) != 4 or shape[axis] not in (channels, None):
        said = f"{TensorProto.DataType.Name(kind)} {list(shape)}"
        allowed = f"UINT8 [N, H, W, {channels}] or FLOAT [N, {channels}, H, W]"
        raise ExportError(f"{path}: {INPUT} is {said}; allowed: {allowed}")
    if shape[0] is not None:
        raise ExportError(f"{path}: {INPUT} has a fixed batch of {shape[0]}; allowed: a free first axis (dynamic_axes)")
    height, width = shape[1:3] if layout == "uint8_hwc" else shape[2:4]
    if height is None or width is None:
        return layout, None
    check_input_size((height, width), str(path))
    return layout, (height, width)


def _measured_stride(output: Path, path: Path, source: Source) -> int:
    """Run the graph once; return the stride of its masks, after checking both outputs against the source."""
    preprocessing, divisor = source.preprocessing, source.preprocessing.pad_divisor
    height, width = preprocessing.input_size or tuple(-(-side // divisor) * divisor for side in _TRIED_SIZE)
    takes_pixels, channels = preprocessing.layout == "uint8_hwc", preprocessing.channels
    zeros = np.zeros((1, height, width, channels) if takes_pixels else (1, channels, height, width))
    session = open_session(output)
    try:
        classes, masks = session.run(list(OUTPUTS), {INPUT: zeros.astype(np.uint8 if takes_pixels else np.float32)})
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ExportError(
            f"ONNX Runtime does not run the graph for an image of {height, width}: {reason(error)}"
        ) from error
    shape = masks.shape
    if len(shape) != 4 or 0 in shape or height % shape[2] or height // shape[2] * shape[3] != width:
        raise ExportError(
            f"{path}: mask_logits are {list(shape)} for an image of {height, width}; allowed: [1, Q, H/n, W/n], n whole"
        )
    _check_classes(classes.shape, shape[1], source, path)
    stride: int = height // shape[2]
    if source.states_stride and stride != source.facts.mask_stride:
        raise ExportError(
            f"{path}: masks are at stride {stride}; mask_stride is {source.facts.mask_stride}; allowed: {stride}"
        )
    if not preprocessing.input_size and divisor % stride:
        raise ExportError(f"{path}: masks are at stride {stride}; allowed: a pad_divisor that is a multiple of it")
    return stride


def _check_classes(shape: tuple[int, ...], queries: int, source: Source, path: Path) -> None:
    wanted = [1, queries, source.num_classes + 1]
    if list(shape) != wanted:
        raise ExportError(
            f"{path}: cls_logits are {list(shape)}; allowed: {wanted}, for the {queries} queries of mask_logits, "
            f"{source.num_classes} classes and no-object"
        )
