"""Rules that make a graph faster: each gives the same numbers, and leaves alone what is not its pattern."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from sources import COMMITTED

from m2f_export.onnx_files import check_graph
from m2f_export.rewrite import rewritten

N, Q, C, HEIGHT, WIDTH = 2, 3, 8, 12, 16
node, FLOAT = helper.make_node, TensorProto.FLOAT


def graph(nodes, inputs, outputs, constants=None, *, opset=17):
    """Make a model. `inputs` are shapes, in which names are free axes; `outputs` are types and ranks."""
    arrays = {name: np.asarray(value) for name, value in (constants or {}).items()}
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name, (kind, rank) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def compute(model, **inputs):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def kinds(model):
    return Counter(node.op_type for node in model.graph.node)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# --- masks ---


def attention(*, also_output=False):
    """Queries and features -> mask logits, and which cells of a smaller size are hidden; in two layers."""
    nodes = []
    for i in range(2):
        nodes += [
            node("Einsum", [f"queries{i}", "features"], [f"masks{i}"], equation="bqc,bchw->bqhw"),
            node("Shape", [f"masks{i}"], [f"shape{i}"]),
            node("Slice", [f"shape{i}", "0", "2"], [f"batch{i}"]),
            node("Concat", [f"batch{i}", "rows", "columns"], [f"size{i}"], axis=0),
            node("Resize", [f"masks{i}", "", "", f"size{i}"], [f"small{i}"], mode="linear"),
            node("Sigmoid", [f"small{i}"], [f"probability{i}"]),
            node("Less", [f"probability{i}", "half"], [f"hidden{i}"]),
        ]
    outputs = {"masks1": (FLOAT, 4), "hidden0": (TensorProto.BOOL, 4), "hidden1": (TensorProto.BOOL, 4)}
    if also_output:
        outputs |= {"small0": (FLOAT, 4), "small1": (FLOAT, 4)}
    inputs = {"queries0": ["N", Q, C], "queries1": ["N", Q, C], "features": ["N", C, "H", "W"]}
    return graph(nodes, inputs, outputs, {"0": [0], "2": [2], "half": np.float32(0.5), "rows": [3], "columns": [4]})


def masks_input():
    queries = noise(2, N, Q, C)
    return {"queries0": queries[0], "queries1": queries[1], "features": noise(N, C, HEIGHT, WIDTH)}


def test_an_attention_mask_is_computed_at_its_own_size():
    model = attention()
    faster = rewritten(model)
    check_graph(faster)
    masks, *hidden = compute(model, **masks_input())
    also, *also_hidden = compute(faster, **masks_input())
    np.testing.assert_allclose(also, masks, atol=1e-5)
    np.testing.assert_array_equal(also_hidden, hidden)
    assert 0 < np.mean(hidden) < 1
    assert kinds(faster)["MatMul"] == 3  # two attention masks and the output
    assert kinds(faster)["Resize"] == 1  # of the features, for both


def test_a_resized_mask_that_is_also_an_output_is_resized_after_the_product():
    model = attention(also_output=True)
    faster = rewritten(model)
    sizes = {tuple(a.shape) for a in compute(faster, **masks_input())}
    assert sizes == {(N, Q, HEIGHT, WIDTH), (N, Q, 3, 4)}
    for ours, theirs in zip(compute(faster, **masks_input()), compute(model, **masks_input()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert kinds(faster)["Resize"] == 2


def test_another_product_stays_an_einsum():
    model = graph(
        [node("Einsum", ["a", "b"], ["c"], equation="bqc,bqhw->bchw")],
        {"a": ["N", Q, C], "b": ["N", Q, "H", "W"]},
        {"c": (FLOAT, 4)},
    )
    assert rewritten(model) is model


# --- group norm ---


def group_norm(*, groups=2, scale=1.0, shape=None, size=("H", "W"), opset=17):
    """Group norm as PyTorch writes it: of a free size with the shape of its input, else with a constant."""
    back = [] if shape else [node("Shape", ["x"], ["shape"])]
    return graph(
        [
            node("Reshape", ["x", "split"], ["grouped"]),
            node("InstanceNormalization", ["grouped", "scale", "shift"], ["normalised"], epsilon=1e-3),
            *back,
            node("Reshape", ["normalised", "shape"], ["norm"]),
            node("Mul", ["norm", "weight"], ["y"]),
        ],
        {"x": ["N", C, *size]},
        {"y": (FLOAT, 4)},
        {
            "split": [0, groups, -1], "scale": np.full(groups, scale, np.float32),
            "shift": np.zeros(groups, np.float32), "weight": noise(C, 1, 1), **({"shape": shape} if shape else {}),
        },
        opset=opset,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": C},
        {"groups": 1},
        {"shape": [-1, C, HEIGHT, WIDTH], "size": (HEIGHT, WIDTH)},
        {"opset": 18},  # axes of a mean are an input
    ],
)
def test_a_group_norm_is_computed_without_a_reshape_of_its_pixels(options):
    model = group_norm(**options)
    faster = rewritten(model)
    check_graph(faster)
    x = noise(N, C, HEIGHT, WIDTH) * 3 + 100  # a mean far from 0: a variance by squares alone would lose digits
    np.testing.assert_allclose(compute(faster, x=x), compute(model, x=x), atol=1e-4)
    assert "InstanceNormalization" not in kinds(faster)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 2.0},
        {"shape": [-1, 2 * C, HEIGHT // 2, WIDTH], "size": (HEIGHT, WIDTH)},  # another shape afterwards
        {"shape": [-1, C, HEIGHT, WIDTH]},  # the input's own size is not known
    ],
)
def test_what_is_no_group_norm_stays(options):
    model = group_norm(**options)
    assert rewritten(model) is model


# --- deformable attention ---


def sampled(*, levels=2, points=3, axis=3):
    """Sample each level, weigh the samples and sum over levels and points, as PyTorch's deformable attention does."""
    nodes = []
    for i in range(levels):
        nodes += [
            node("GridSample", [f"level{i}", f"grid{i}"], [f"sample{i}"], align_corners=0),
            node("Unsqueeze", [f"sample{i}", "axis"], [f"part{i}"]),
        ]
    nodes += [
        node("Concat", [f"part{i}" for i in range(levels)], ["stacked"], axis=axis),
        node("Reshape", ["stacked", "flat"], ["samples"]),
        node("Mul", ["samples", "weights"], ["weighed"]),
        node("ReduceSum", ["weighed", "last"], ["y"], keepdims=0),
    ]
    inputs = {f"level{i}": ["N", C, "h", "w"] for i in range(levels)}
    inputs |= {f"grid{i}": ["N", Q, points, 2] for i in range(levels)} | {"weights": ["N", 1, Q, levels * points]}
    constants = {"axis": [axis], "flat": [0, 0, Q, levels * points], "last": [-1]}
    return graph(nodes, inputs, {"y": (FLOAT, 3)}, constants)


@pytest.mark.parametrize(("levels", "points"), [(1, 4), (2, 3), (3, 1)])
def test_samples_of_levels_are_weighed_before_they_meet(levels, points):
    model = sampled(levels=levels, points=points)
    faster = rewritten(model)
    check_graph(faster)
    inputs = {f"level{i}": noise(N, C, 4 + i, 5) for i in range(levels)}
    inputs |= {f"grid{i}": noise(N, Q, points, 2) / 2 for i in range(levels)}
    inputs["weights"] = noise(N, 1, Q, levels * points)
    np.testing.assert_allclose(compute(faster, **inputs), compute(model, **inputs), atol=1e-5)
    assert not any(len(n.input) == levels and n.op_type == "Concat" for n in faster.graph.node if levels > 1)


def test_samples_that_are_stacked_otherwise_stay():
    model = sampled(axis=4)
    assert rewritten(model) is model


# --- whole graphs ---


def test_a_rewritten_graph_is_not_rewritten_again():
    model = onnx.load(COMMITTED)
    assert rewritten(model) is model


def test_the_model_passed_in_is_not_changed():
    model = attention()
    before = model.SerializeToString()
    rewritten(model)
    assert model.SerializeToString() == before
