"""Write half precision into a graph, and keep float32 where rounding costs accuracy.

TensorRT from version 11 and TensorRT-RTX are strongly typed: an engine computes in the types of its graph, and no
builder flag changes them. So the graph states the types: weights and activations become float16 or bfloat16, casts are
placed where the precision changes, and the inputs and outputs keep their types.

The nodes that stay float32 are found by the graph's edges, not by node names, so the rules hold for every exporter:

| reason | nodes | why |
|---|---|---|
| `pixels` | the input's normalisation, before the first weight | a rounded mean shifts every pixel alike |
| `logits` | the product that makes an output, and the nodes after it | logits are compared with each other and zero |
| `attention` | the products whose sign decides which keys a query sees, up to the comparison | a flip hides a key |
| `norm` | LayerNormalization, InstanceNormalization, Softmax and similar | they sum over thousands of elements |
| `sampling` | positional encodings and the sampling points of the deformable attention | float16 loses subpixels |
| `range` | readers of a constant that the half type cannot hold | the constant would become infinity |

NVIDIA's own deployment of Mask2Former keeps the decoder's cross attention in float32:
https://github.com/NVIDIA/tao_deploy/blob/main/nvidia_tao_deploy/cv/mask2former/scripts/gen_trt_engine.py
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import onnx
import onnx.version_converter
from google.protobuf.message import Message as ProtoMessage
from onnx import TensorProto, helper, numpy_helper

from m2f_export.export_errors import ExportError
from m2f_export.onnx_files import opset_of

Precision = Literal["fp32", "fp16", "bf16"]
Message = TypeVar("Message", bound=ProtoMessage)
PRECISIONS = ("fp32", "fp16", "bf16")
REASONS = ("pixels", "logits", "attention", "norm", "sampling", "range")

_HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_LARGEST = {"fp16": 65504.0, "bf16": 3.38e38}
_BF16_OPSET = 22  # the first in which every operator of these graphs takes bfloat16

_PRODUCTS = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
_COMPARISONS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_NORMS = {
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LogSoftmax",
    "LpNormalization", "Pow", "ReduceMean", "RMSNormalization", "Softmax", "Sqrt",
}  # fmt: skip
_ENCODINGS = {"Cos", "CumSum", "Range", "Sin"}
_ALWAYS_FLOAT32 = {"Resize": (1, 2)}  # inputs that are float32 for data of any type: roi, scales


class _Graph(NamedTuple):
    """A graph, indexed for walking along its edges; nodes are named by their position."""

    nodes: list[onnx.NodeProto]
    floats: set[str]  # names of the float32 tensors
    made_by: dict[str, int]  # tensor -> the node that makes it
    used_by: dict[str, list[int]]  # tensor -> the nodes that read it
    constants: dict[str, TensorProto]
    outputs: list[str]


def convert(model: onnx.ModelProto, precision: Precision, *, reasons: Collection[str] = REASONS) -> onnx.ModelProto:
    """Return the model in another precision; the model passed in is not changed.

    Args:
        model: float32 graph of standard operators, without subgraphs.
        precision: `fp32` returns a copy.
        reasons: which of the module's reasons keep a node in float32.

    Returns:
        A checked model with the same inputs and outputs: names, types and shapes.

    Raises:
        ExportError: the precision is unknown, or the graph cannot be converted: a tensor has an unknown type, a node
            holds a subgraph, or the graph is in half precision already.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision must be one of: {', '.join(PRECISIONS)}; got {precision!r}")
    if precision == "fp32":
        return _copy(model)
    if precision == "bf16":
        model = _with_opset(model, _BF16_OPSET)
    graph = _read(model)
    by_reason = _kept_float32(graph, precision)
    kept = _of_type(graph, {"Constant"}).union(*(by_reason[reason] for reason in reasons))
    converted = _Writer(graph, kept, _HALF[precision]).write(model)
    try:
        converted = onnx.shape_inference.infer_shapes(converted, strict_mode=True)
        onnx.checker.check_model(converted, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph is not valid in {precision}: {error}") from error
    return converted


def kept_float32(model: onnx.ModelProto, precision: Precision) -> dict[str, frozenset[int]]:
    """Return the positions of the nodes that `convert` keeps in float32, by reason; a node can have several."""
    return _kept_float32(_read(model), precision)


def _kept_float32(graph: _Graph, precision: Precision) -> dict[str, frozenset[int]]:
    inputs = {name for name in graph.used_by if name not in graph.made_by and name not in graph.constants}
    compared = _inputs_of(graph, _COMPARISONS)
    sampled = [node.input[1] for node in graph.nodes if node.op_type == "GridSample"]
    large = {name for name, tensor in graph.constants.items() if _overflows(tensor, _LARGEST[precision])}
    return {
        "pixels": _downstream(graph, inputs),
        "logits": _upstream(graph, graph.outputs, with_product=True),
        "attention": _upstream(graph, compared, with_product=True) | _of_type(graph, _COMPARISONS),
        # and what leads to a deviation: the variance, and the centred values that it is of
        "norm": _of_type(graph, _NORMS) | _upstream(graph, _inputs_of(graph, {"Sqrt"}), with_product=False),
        "sampling": _upstream(graph, [*sampled, *_inputs_of(graph, _ENCODINGS)], with_product=False)
        | _of_type(graph, {"GridSample", *_ENCODINGS}),
        "range": frozenset(i for i, node in enumerate(graph.nodes) if large & set(node.input)),
    }


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that rounds on ONNX Runtime's CPU as on a device that stores half precision.

    By itself ONNX Runtime computes a half-precision graph in float32 almost from end to end: the casts that it puts
    around its nodes cancel out, and the answers are too exact. (It has no bfloat16 on a CPU at all.) In the returned
    graph every node computes in float32, and casts, which belong to the graph and stay, round every result. Sums are
    still float32 sums.

    Args:
        model: a graph that `convert` returned.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    halves = {name: kind for name, kind in types.items() if kind in _HALF.values()}
    constants = [tensor.name for tensor in graph.initializer if tensor.name in halves]
    nodes = [_cast(name, f"{name}_rounded", TensorProto.FLOAT) for name in constants]
    for original in model.graph.node:
        node = _copy(original)
        made = [name for name in original.output if name in halves]
        if node.op_type != "Cast":
            node.input[:] = [f"{name}_rounded" if name in halves else name for name in original.input]
            node.output[:] = [f"{name}_exact" if name in halves else name for name in original.output]
            _retype_tensors(node, TensorProto.FLOAT)
        nodes.append(node)
        if node.op_type != "Cast":
            nodes += [_cast(f"{name}_exact", name, halves[name]) for name in made]
        nodes += [_cast(name, f"{name}_rounded", TensorProto.FLOAT) for name in made]
    return _with_graph(model, nodes, model.graph.initializer)


def _read(model: onnx.ModelProto) -> _Graph:
    """Index the model's graph, with the type of every tensor."""
    for node in model.graph.node:
        if any(attribute.g.node or attribute.graphs for attribute in node.attribute):
            raise ExportError(
                f"node {node.name!r} ({node.op_type}) holds a subgraph: precision is set in flat graphs only"
            )
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the types of the graph cannot be inferred: {error}") from error
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types.update((name, tensor.data_type) for name, tensor in constants.items())
    if set(types.values()) & set(_HALF.values()):
        raise ExportError("the graph is in half precision already")
    made_by: dict[str, int] = {}
    used_by: dict[str, list[int]] = {}
    for i, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if not types.get(name):
                raise ExportError(f"the type of {name!r}, made by node {node.name!r} ({node.op_type}), is not known")
            made_by[name] = i
        for name in filter(None, node.input):
            used_by.setdefault(name, []).append(i)
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    outputs = [output.name for output in graph.output]
    return _Graph(list(graph.node), floats, made_by, used_by, constants, outputs)


def _inputs_of(graph: _Graph, types: set[str]) -> list[str]:
    return [name for node in graph.nodes if node.op_type in types for name in node.input]


def _of_type(graph: _Graph, types: set[str]) -> frozenset[int]:
    return frozenset(i for i, node in enumerate(graph.nodes) if node.op_type in types)


def _upstream(graph: _Graph, tensors: Iterable[str], *, with_product: bool) -> frozenset[int]:
    """Return the nodes that the float tensors come from, back to the nearest products, these included or not."""
    found: set[int] = set()
    waiting = list(tensors)
    while waiting:
        name = waiting.pop()
        i = graph.made_by.get(name)
        if i is None or i in found or name not in graph.floats:
            continue
        is_product = graph.nodes[i].op_type in _PRODUCTS
        if not is_product or with_product:
            found.add(i)
        if not is_product:
            waiting += graph.nodes[i].input
    return frozenset(found)


def _downstream(graph: _Graph, tensors: Iterable[str]) -> frozenset[int]:
    """Return the nodes that the tensors lead to, up to the first products."""
    found: set[int] = set()
    waiting = list(tensors)
    while waiting:
        for i in graph.used_by.get(waiting.pop(), ()):
            node = graph.nodes[i]
            if i not in found and node.op_type not in {*_PRODUCTS, "Shape"}:
                found.add(i)
                waiting += node.output
    return frozenset(found)


def _overflows(tensor: TensorProto, largest: float) -> bool:
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = np.abs(numpy_helper.to_array(tensor))
    return bool((values[np.isfinite(values)] > largest).any())


class _Writer:
    """Writes the graph anew: in half precision but for the kept nodes, with casts where a tensor changes its type."""

    def __init__(self, graph: _Graph, kept: frozenset[int], half: int) -> None:
        self.graph, self.half = graph, half
        self.types = [TensorProto.FLOAT if i in kept else half for i in range(len(graph.nodes))]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.casts: dict[tuple[str, int], str] = {}

    def write(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a copy of the model with the new nodes and constants."""
        for original, wanted in zip(self.graph.nodes, self.types, strict=True):
            node = _copy(original)
            for position, name in enumerate(original.input):
                float32 = position in _ALWAYS_FLOAT32.get(node.op_type, ())
                node.input[position] = self.typed(name, TensorProto.FLOAT if float32 else wanted)
            if wanted == self.half and node.output[0] in self.graph.floats:
                _retype_tensors(node, self.half)
                if node.op_type == "Cast":
                    (to,) = node.attribute
                    to.i = self.half
            self.nodes.append(node)
        return _with_graph(model, self.nodes, self.constants.values())

    def typed(self, name: str, wanted: int) -> str:
        """Return the name of a tensor in the wanted type, adding a cast if needed; of other than floats their own."""
        maker = self.graph.made_by.get(name)
        has = TensorProto.FLOAT if maker is None else self.types[maker]
        constant = self.graph.constants.get(name)
        if name not in self.graph.floats or wanted == has:
            if constant is not None:
                self.constants[name] = constant
            return name
        if (name, wanted) not in self.casts:
            self.casts[name, wanted] = other = f"{name}_{TensorProto.DataType.Name(wanted).lower()}"
            if constant is not None:
                self.constants[other] = _as_type(constant, other, self.half)
            else:
                self.nodes.append(_cast(name, other, wanted))
        return self.casts[name, wanted]


def _cast(name: str, other: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [other], name=f"cast to {other}", to=to)


def _retype_tensors(node: onnx.NodeProto, to: int) -> None:
    """Change the type of the float tensors among a node's attributes, such as the value of a fill."""
    for attribute in node.attribute:
        if attribute.t.data_type in (TensorProto.FLOAT, *_HALF.values()):
            attribute.t.CopyFrom(_as_type(attribute.t, attribute.t.name, to))


def _as_type(tensor: TensorProto, name: str, to: int) -> TensorProto:
    dtype = helper.tensor_dtype_to_np_dtype(to)  # numpy's, or ml_dtypes' bfloat16
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), name)


def _with_graph(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], constants: Iterable[TensorProto]
) -> onnx.ModelProto:
    result = _copy(model)
    for field, values in (("node", nodes), ("initializer", constants), ("value_info", ())):
        result.graph.ClearField(field)
        getattr(result.graph, field).extend(values)
    return result


def _with_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    if opset_of(model) >= version:
        return model
    try:
        return onnx.version_converter.convert_version(model, version)
    except RuntimeError as error:
        raise ExportError(f"bf16 needs opset {version}, and the graph cannot be converted to it: {error}") from error


def _copy(message: Message) -> Message:
    other = type(message)()
    other.CopyFrom(message)
    return other
