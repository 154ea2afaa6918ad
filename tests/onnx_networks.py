"""A network of no framework at all: an ONNX graph, written node by node, that segments pictures by their colours."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def network(*, layout="float32_chw", size=(None, None), stride=4, classes=3, queries=5, einsum=False):
    """Make a graph: the masks are mixtures of the colours, the classes are those of the mean colour.

    With `einsum` the mixtures depend on the mean colour, too, as the masks of a transformer depend on its queries.
    """
    rng = np.random.default_rng(0)
    weights = {
        "mask_weight": rng.normal(size=(queries, 3, 1, 1)) * 4,
        "class_weight": rng.normal(size=(queries * (classes + 1), 3, 1, 1)) * 4,
    }
    shape = [None, *size, 3] if layout == "uint8_hwc" else [None, 3, *size]
    start, given = [], "input"
    if layout == "uint8_hwc":
        weights |= {"mean": np.array([120, 110, 100]), "std": np.array([60, 58, 56])}
        start = [
            helper.make_node("Cast", ["input"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["pixels", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["normalised"]),
            helper.make_node("Transpose", ["normalised"], ["image"], perm=[0, 3, 1, 2]),
        ]
        given = "image"
    masks = [helper.make_node("Conv", ["cells", "mask_weight"], ["mask_logits"])]
    if einsum:
        weights["mask_weight"] = rng.normal(size=(queries * 3, 3, 1, 1)) * 4
        masks = [
            helper.make_node("Conv", ["colour", "mask_weight"], ["mixtures"]),
            helper.make_node("Reshape", ["mixtures", "query_shape"], ["queries"]),
            helper.make_node("Einsum", ["queries", "cells"], ["mask_logits"], equation="bqc,bchw->bqhw"),
        ]
    nodes = [
        *start,
        helper.make_node("AveragePool", [given], ["cells"], kernel_shape=[stride] * 2, strides=[stride] * 2),
        helper.make_node("GlobalAveragePool", [given], ["colour"]),
        *masks,
        helper.make_node("Conv", ["colour", "class_weight"], ["flat"]),
        helper.make_node("Reshape", ["flat", "class_shape"], ["cls_logits"]),
    ]
    kind = TensorProto.UINT8 if layout == "uint8_hwc" else TensorProto.FLOAT
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array([0, queries, classes + 1]), "class_shape"))
    if einsum:
        constants.append(numpy_helper.from_array(np.array([0, queries, 3]), "query_shape"))
    outputs = [
        helper.make_tensor_value_info("cls_logits", TensorProto.FLOAT, [None, queries, classes + 1]),
        helper.make_tensor_value_info("mask_logits", TensorProto.FLOAT, [None, queries, None, None]),
    ]
    inputs = [helper.make_tensor_value_info("input", kind, shape)]
    made = helper.make_graph(nodes, "network", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model
