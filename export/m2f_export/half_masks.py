"""Give out the mask logits in half precision: half the bytes for Triton to copy from step to step."""

from __future__ import annotations

from itertools import chain

import onnx
from onnx import TensorProto, helper

from m2f_export.export_errors import ExportError
from m2f_export.onnx_files import OUTPUTS

_MASKS = "mask_logits"
_EXACT = f"{_MASKS}_float32"
_TYPES = {TensorProto.FLOAT: "FP32", TensorProto.FLOAT16: "FP16"}


def with_half_masks(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that rounds its mask logits to half precision at the very end.

    The class logits stay float32: rounding them would change the scores, and they are small.

    Args:
        model: a graph with the output `mask_logits`; it is not changed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for names in chain.from_iterable((node.input, node.output) for node in result.graph.node):
        names[:] = [_EXACT if name == _MASKS else name for name in names]
    result.graph.node.append(helper.make_node("Cast", [_EXACT], [_MASKS], name="half masks", to=TensorProto.FLOAT16))
    (output,) = (output for output in result.graph.output if output.name == _MASKS)
    output.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.checker.check_model(result)
    return result


def logits_types(model: onnx.ModelProto) -> dict[str, str]:
    """Return Triton's word for the type of each of a graph's logits, `FP32` or `FP16`, by name.

    Raises:
        ExportError: the logits have another type.
    """
    found = {}
    for output in model.graph.output:
        if output.name in OUTPUTS:
            kind = output.type.tensor_type.elem_type
            if kind not in _TYPES:
                told = f"{output.name} has the type {TensorProto.DataType.Name(kind)}"
                raise ExportError(f"{told}; allowed: {', '.join(TensorProto.DataType.Name(one) for one in _TYPES)}")
            found[output.name] = _TYPES[kind]
    return found
