"""Rewrite a graph so that a processor computes the same logits in less time.

Each rule is an identity of real numbers: results differ by rounding. Patterns are found by operators and edges, not by
names, so the rules hold for every exporter. What a rule does not recognise stays as it is.

| rule | was | becomes | why |
|---|---|---|---|
| attention masks | resize(queries x features) | queries x resize(features) | a product at 1/4 to 1/64 of the pixels |
| mask product | Einsum | MatMul, channels of a pixel side by side | as convolutions make them: no copy |
| group norm | InstanceNormalization of groups | means over height and width, then over channels | likewise |
| sampled values | stack levels, weigh, sum | weigh each level, add levels, sum | writes less memory |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from m2f_export.onnx_files import opset_of, side

_COMPARISONS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_KEEP_ORDER = {"Expand", "Flatten", "Reshape", "Sigmoid", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
_AXES_AS_INPUT = 18  # the opset from which ReduceMean takes its axes as an input

Array = npt.NDArray[Any]


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that computes the same in less time; the model passed in is not changed.

    Args:
        model: graph of standard operators. If no rule applies, this model itself is returned.
    """
    graph = _Graph(model)
    for node in model.graph.node:
        if not any(rule(graph, node) for rule in _RULES):
            graph.nodes.append(node)
    return model if graph.is_unchanged() else graph.written()


class _Graph:
    """A graph, indexed for walking along its edges, and the new list of its nodes.

    Attributes:
        nodes: the nodes so far, each after those that make its inputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._model = model
        self._made_by = {name: node for node in model.graph.node for name in node.output}
        self._read_by: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._read_by.setdefault(name, []).append(node)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._added: dict[tuple[object, ...], str] = {}
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = (*inferred.input, *inferred.value_info)
        self._shapes = {value.name: tuple(map(side, value.type.tensor_type.shape.dim)) for value in values}

    # --- reading

    def maker(self, name: str, kind: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor, if it is of a kind."""
        node = self._made_by.get(name)
        return node if node is not None and node.op_type == kind else None

    def value(self, name: str) -> Array | None:
        """Return the value of a constant; None of what is computed."""
        if name in self._constants:
            return numpy_helper.to_array(self._constants[name])
        node = self.maker(name, "Constant")
        stated = node is not None and node.attribute[0].name == "value"
        return numpy_helper.to_array(node.attribute[0].t) if node is not None and stated else None

    def has_shape_of(self, shape: str, name: str) -> bool:
        """Return whether a shape is that of a tensor [N, C, H, W], the batch aside."""
        whole = self.maker(shape, "Shape")
        if whole is not None:
            return bool(whole.input[0] == name)
        stated, known = self.value(shape), self._shapes.get(name, ())
        return stated is not None and len(known) == 4 and stated.tolist()[1:] == list(known[1:])

    def is_only_compared(self, name: str) -> bool:
        """Return whether a tensor's values decide comparisons, and nothing else."""
        readers = [node for node in self._read_by.get(name, ()) if node.op_type != "Shape"]
        return bool(readers) and name not in self._outputs and all(
            node.op_type in _COMPARISONS
            or (node.op_type in _KEEP_ORDER and node.input[0] == name and self.is_only_compared(node.output[0]))
            for node in readers
        )  # fmt: skip

    # --- writing

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node of one output and return the output's name; an equal node that was added before serves again.

        Args:
            kind: operator.
            inputs: names of tensors.
            output: name of the output; empty: a new name.
            attributes: attributes of the node.
        """
        key = (kind, inputs, str(attributes))
        if output or key not in self._added:
            name = output or f"rewritten/{kind}_{len(self._added)}"
            self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
            self._added[key] = name
        return self._added[key]

    def constant(self, values: Sequence[int] | Array) -> str:
        """Return the name of a constant of whole numbers (int64), or of an array."""
        array = values if isinstance(values, np.ndarray) else np.array(values, np.int64)
        name = f"rewritten/{array.dtype}_{array.tolist()}"
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def mean(self, name: str, *axes: int) -> str:
        """Add the mean over some axes, which stay with size 1."""
        if opset_of(self._model) >= _AXES_AS_INPUT:
            return self.add("ReduceMean", name, self.constant(axes), keepdims=1)
        return self.add("ReduceMean", name, axes=axes, keepdims=1)

    def sides(self, name: str, begin: int, end: int) -> str:
        """Add a part of a tensor's shape."""
        return self.add("Slice", self.add("Shape", name), self.constant([begin]), self.constant([end]))

    def is_unchanged(self) -> bool:
        """Return whether no rule has added a node."""
        return not self._added

    def written(self) -> onnx.ModelProto:
        """Return the model with the new nodes, without those that no output needs."""
        needed, kept = set(self._outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        result = onnx.ModelProto()
        result.CopyFrom(self._model)
        constants = (tensor for name, tensor in self._constants.items() if name in needed)
        for field, values in (("node", reversed(kept)), ("initializer", constants), ("value_info", ())):
            result.graph.ClearField(field)
            getattr(result.graph, field).extend(values)
        return result


# --- masks -----------------------------------------------------------------------------------------------------------


def _attention_mask(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Write queries x resize(features) for resize(queries x features), if only comparisons read it."""
    if node.op_type != "Resize" or not graph.is_only_compared(node.output[0]):
        return False
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    product = graph.maker(node.input[0], "Einsum")
    sizes = graph.maker(node.input[3], "Concat") if len(node.input) == 4 and "axes" not in attributes else None
    if product is None or sizes is None or len(sizes.input) not in (3, 4) or not _is_product_of_masks(product):
        return False
    queries, features = product.input
    size = graph.add("Concat", graph.sides(features, 0, 2), *sizes.input[-2:], axis=0)  # of height and width
    _product(graph, queries, graph.add("Resize", features, "", "", size, **attributes), node.output[0])
    return True


def _mask_product(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Write MatMul for Einsum."""
    if node.op_type != "Einsum" or not _is_product_of_masks(node):
        return False
    queries, features = node.input
    _product(graph, queries, features, node.output[0])
    return True


def _is_product_of_masks(einsum: onnx.NodeProto) -> bool:
    """Return whether an Einsum is [N, Q, C] x [N, C, H, W] -> [N, Q, H, W]."""
    terms, _, result = einsum.attribute[0].s.decode().replace(" ", "").partition("->")
    queries, _, features = terms.partition(",")
    if len(queries) != 3 or len(features) != 4:
        return False
    (n, q, c), (h, w) = queries, features[2:]
    return len({n, q, c, h, w}) == 5 and features == n + c + h + w and result == n + q + h + w


def _product(graph: _Graph, queries: str, features: str, output: str) -> None:
    """Multiply [N, Q, C] x [N, C, H, W] -> [N, Q, H, W]."""
    pixels = graph.add("Transpose", features, perm=(0, 2, 3, 1))
    flat = graph.add("Concat", graph.constant([0, -1]), graph.sides(pixels, 3, 4), axis=0)
    columns = graph.add("Transpose", graph.add("Reshape", pixels, flat), perm=(0, 2, 1))  # [N, C, H * W]
    shape = graph.add("Concat", graph.constant([0, 0]), graph.sides(pixels, 1, 3), axis=0)
    graph.add("Reshape", graph.add("MatMul", queries, columns), shape, output=output)


# --- group norm ------------------------------------------------------------------------------------------------------


def _group_norm(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Write means over height and width, then over the channels of a group, for InstanceNormalization.

    Scale and shift come after it. The reshape to groups, [N, G, C/G x H x W], needs the pixels of a channel side by
    side in memory; convolutions on a processor make and take the channels of a pixel side by side.
    """
    norm = graph.maker(node.input[0], "InstanceNormalization") if node.op_type == "Reshape" else None
    grouped = graph.maker(norm.input[0], "Reshape") if norm is not None else None
    if norm is None or grouped is None or not graph.has_shape_of(node.input[1], grouped.input[0]):
        return False
    ones, zeros, split = (graph.value(name) for name in (*norm.input[1:3], grouped.input[1]))
    if ones is None or zeros is None or split is None or (ones != 1).any() or zeros.any():
        return False
    if split.tolist() != [0, len(ones), -1]:
        return False
    epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
    x = grouped.input[0]
    centred = graph.add("Sub", x, _mean_of_groups(graph, x, len(ones)))
    variance = _mean_of_groups(graph, graph.add("Mul", centred, centred), len(ones))
    above_0 = graph.add("Add", variance, graph.constant(np.array(epsilon, np.float32)))
    graph.add("Div", centred, graph.add("Sqrt", above_0), output=node.output[0])
    return True


def _mean_of_groups(graph: _Graph, x: str, groups: int) -> str:
    """Average [N, C, H, W] to [N, C, 1, 1], where the channels of a group have one value."""
    each = graph.mean(x, 2, 3)
    grouped = graph.add("Reshape", each, graph.constant([0, groups, -1]))
    spread = graph.add("Expand", graph.mean(grouped, 2), graph.add("Shape", grouped))
    return graph.add("Reshape", spread, graph.add("Shape", each))


# --- deformable attention --------------------------------------------------------------------------------------------


def _sampled_values(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Write sum(level 1 x weights 1 + ...) over the points for sum(levels x weights) over levels and points."""
    axes = graph.value(node.input[1]) if node.op_type == "ReduceSum" and len(node.input) == 2 else None
    weighed = graph.maker(node.input[0], "Mul") if axes is not None else None
    if axes is None or axes.tolist() != [-1] or weighed is None:
        return False
    for stacked, weights in (weighed.input, reversed(weighed.input)):
        levels = _stacked_samples(graph, stacked)
        if levels:
            by_level = graph.add("Reshape", weights, graph.constant([0, 0, 0, len(levels), -1]))
            terms = [
                graph.add("Mul", level, graph.add("Gather", by_level, graph.constant(np.array(i)), axis=3))
                for i, level in enumerate(levels)
            ]
            total = terms[0]
            for term in terms[1:]:
                total = graph.add("Add", total, term)
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            graph.add("ReduceSum", total, node.input[1], output=node.output[0], **attributes)
            return True
    return False


def _stacked_samples(graph: _Graph, name: str) -> list[str]:
    """Return the samples of each level, [N, C, Q, P], if a tensor is [N, C, Q, levels * P] of them; else nothing."""
    flat = graph.maker(name, "Reshape")
    stack = graph.maker(flat.input[0], "Concat") if flat is not None else None
    if stack is None or helper.get_attribute_value(stack.attribute[0]) not in (3, -2):
        return []
    samples = []
    for part in stack.input:
        level = graph.maker(part, "Unsqueeze")
        axis = graph.value(level.input[1]) if level is not None and len(level.input) == 2 else None
        if level is None or axis not in (3, -2) or graph.maker(level.input[0], "GridSample") is None:
            return []
        samples.append(level.input[0])
    return samples


_RULES: tuple[Callable[[_Graph, onnx.NodeProto], bool], ...] = (
    _attention_mask, _mask_product, _group_norm, _sampled_values,
)  # fmt: skip
