"""`m2f doctor`: every planted fault is found, and named; what is right is left alone."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from deploy_configs import ISSUE_2775, changed
from mutate import mutated
from onnx import TensorProto, helper, numpy_helper
from permissions import unprivileged

from m2f_cli.doctor import doctor
from m2f_export.doctor import diagnose
from m2f_export.doctor.catalogue import ENTRIES
from m2f_export.doctor.onnx_checks import check_onnx
from m2f_export.doctor.server_version import found_server, is_safe
from m2f_export.export_errors import ExportError
from m2f_export.onnx_files import load_onnx

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "model_repository"
TINY = """backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
"""
SIDE, QUERIES, CLASSES = 256, 40, 5  # of the embedded model
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4838904\n"


def graph(  # one argument for each thing that can be wrong with a graph
    *,
    batch="batch",
    dtype="uint8",
    outputs=("cls_logits", "mask_logits"),
    input_name="input",
    stride=4,
    full=False,
    first_row="-1",
    mixed=False,
    domain="",
    opset=17,
    side=SIDE,
    output_type=TensorProto.FLOAT,
    double_grid=False,
):
    """A graph with the engine's interface: pooled pixels as masks, their mean through a matrix as classes."""
    columns = QUERIES * (CLASSES + 1)
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.normal(size=(QUERIES, 3, 1, 1)).astype(np.float32), "queries"),
        numpy_helper.from_array(random.normal(size=(3, columns)).astype(np.float32), "classes"),
        numpy_helper.from_array(np.array([int(first_row), QUERIES, CLASSES + 1]), "shape"),
        numpy_helper.from_array(np.array([1, 1, stride, stride], np.float32), "scales"),
    ]
    pixels = {"uint8": "pixels", "float16": "float", "float32": input_name}[dtype]
    nodes = [
        helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["pixels"], perm=[0, 3, 1, 2]),
    ][: {"uint8": 2, "float16": 1, "float32": 0}[dtype]]
    nodes += [
        helper.make_node("AveragePool", [pixels], ["pooled"], kernel_shape=[stride] * 2, strides=[stride] * 2),
        helper.make_node("Conv", ["pooled", "queries"], ["small"]),
        helper.make_node("GlobalAveragePool", [pixels], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "classes"], ["columns"]),
        helper.make_node("Reshape", ["columns", "shape"], ["logits"]),
    ]
    if double_grid:
        nodes[-6:-6] = [
            helper.make_node("Cast", [pixels], ["wide"], to=TensorProto.DOUBLE),
            helper.make_node("Constant", [], ["grid"], value=numpy_helper.from_array(np.zeros((1, 2, 2, 2)), "grid")),
            helper.make_node("GridSample", ["wide", "grid"], ["sampled"], name="/decoder/GridSample"),
        ]
    if domain:
        nodes.append(helper.make_node("grid_sampler", ["small", "small"], ["unused"], domain=domain))
    masks = "small"
    if full:
        nodes.append(helper.make_node("Resize", ["small", "", "scales"], ["large"], mode="linear"))
        masks = "large"
    if mixed:  # the second image of a batch gets the answer of the first
        weights.append(numpy_helper.from_array(np.array([0]), "zero"))
        nodes += [
            helper.make_node("Gather", ["logits", "zero"], ["one"], axis=0),
            helper.make_node("Shape", ["logits"], ["size"]),
            helper.make_node("Expand", ["one", "size"], ["all"]),
        ]
    nodes += [
        helper.make_node("Cast", ["all" if mixed else "logits"], [outputs[0]], to=output_type),
        helper.make_node("Cast", [masks], [outputs[1]], to=output_type),
    ]
    shape = [batch, side, side, 3] if dtype == "uint8" else [batch, 3, side, side]
    kind = {"uint8": TensorProto.UINT8, "float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}[dtype]
    cells = side if full else side // stride
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(input_name, kind, shape)],
            [
                helper.make_tensor_value_info(outputs[0], output_type, [batch, QUERIES, CLASSES + 1]),
                helper.make_tensor_value_info(outputs[1], output_type, [batch, QUERIES, cells, cells]),
            ],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", opset)] + [helper.make_opsetid(domain, 1)] * bool(domain),
        ir_version=8,
    )
    return model.SerializeToString()


@pytest.fixture
def repository(tmp_path):
    """The shipped repository with the tiny graph as its engine."""
    target = tmp_path / "repository"
    shutil.copytree(SHIPPED, target, ignore=shutil.ignore_patterns("*.onnx", "*.plan", "__pycache__"))
    (target / "mask2former_engine/1/model.onnx").write_bytes(graph())
    return target


def findings(path, level=None, **options):
    """What doctor finds, without the faults that every version of Triton has, unless a version is given."""
    found = diagnose(path, **{"server_version": "26.07", **options}).findings
    wanted = [f for f in found if f.code != "triton-faults" or "server_version" in options]
    return [f for f in wanted if level in (None, f.level)]


def codes(path, level=None, **options):
    return {finding.code for finding in findings(path, level, **options)}


def assert_found(found, level, code, *words):
    """One finding has the code and the level, and its text names all that is to be named."""
    matching = [f for f in found if (f.level, f.code) == (level, code)]
    assert matching, f"no {level} {code} in {[(f.level, f.code, f.what) for f in found]}"
    text = " ".join(f"{f.where} {f.what} {f.why} {f.fix}" for f in matching)
    assert not [word for word in words if word not in text], text
    assert all(f.what and f.why and f.fix and f.where for f in matching)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# ---------------------------------------------------------------- the catalogue


def test_every_code_is_described_with_its_levels():
    rows = re.findall(r"^\| (`.+`) \| ([a-z, ]+) \|", (ROOT / "docs/doctor.md").read_text(), flags=re.MULTILINE)
    described = {code: set(levels.split(", ")) for codes, levels in rows for code in re.findall(r"`([^`]+)`", codes)}
    levels = {}
    for entry in ENTRIES:
        levels.setdefault(entry.code, set()).add(entry.level)
    assert described == levels


# ---------------------------------------------------------------- what is right


def test_the_shipped_repository_has_no_error():
    """Its plan is made where there is a GPU; until then `--config-name cpu` serves it."""
    found = findings(SHIPPED)
    assert_found(found, "warning", "engine-missing", "model.plan", "m2f serve --config-name cpu")
    assert len(found) == 1


def test_the_tiny_repository_is_as_right_as_the_shipped_one(repository):
    assert codes(repository) == {"engine-missing"}


def test_the_exported_graph_has_no_finding():
    assert findings(SHIPPED / "mask2former_engine/1/model.onnx") == []


def test_the_config_of_the_issue_has_no_error(tmp_path):
    """It works; what MMDeploy ignores, and what would make a worse graph, is said."""
    path = tmp_path / "deploy_config.json"
    path.write_text(json.dumps(ISSUE_2775))
    assert codes(path, "error") == set()
    assert_found(findings(path), "note", "mmdeploy-ignores", "score_threshold=0.8", "keep_top_k=100", "mmdeploy#2775")
    assert_found(findings(path), "warning", "opset-too-old", "13", "mmdeploy::grid_sampler", "opset_version = 17")
    assert_found(findings(path), "note", "onnx-not-beside", "end2end.onnx", "--deploy-config")
    assert_found(findings(path), "warning", "profile-batch", "[2, 3, 1344, 1344]", "max_batch_size: 8")


# ---------------------------------------------------------------- deploy configs


@pytest.mark.parametrize(
    ("key", "value", "level", "code", "words"),
    [
        ("onnx_config.output_names", ["dets", "masks"], "error", "output-names", ["dets, masks", "cls_logits"]),
        ("onnx_config.output_names", ["mask_logits", "cls_logits"], "error", "output-order", ["order"]),
        ("onnx_config.input_names", ["img"], "error", "input-names", ["img", "'input'"]),
        ("codebase_config.post_processing.score_threshold", 8, "error", "deploy-config-invalid", ["score_threshold"]),
        (
            "codebase_config.post_processing.keep_top_k",
            "100",
            "error",
            "deploy-config-invalid",
            ["keep_top_k", "'100'"],
        ),
        ("codebase_config.post_processing.scoer_threshold", 0.5, "warning", "key-not-read", ["mean score_threshold"]),
        ("codebase_config.post_processing.mask_thr_binary", 0.5, "warning", "key-not-read", ["mask_thr_binary"]),
        ("onnx_config.input_shape", [1333, 800], "warning", "input-size", ["1333 x 800", "32"]),
        ("onnx_config.input_shape", None, "warning", "input-shape-missing", ["input_shape"]),
        ("onnx_config.input_shape", [800, 1344], "warning", "batch-fixed", ["dynamic_axes"]),
        ("onnx_config.dynamic_axes", {}, "warning", "batch-fixed", ["axis 0"]),
        ("codebase_config.post_processing.export_postprocess_mask", False, "warning", "masks-off", ["rle", "masks"]),
        ("backend_config.type", "openvino", "warning", "backend", ["openvino", "tensorrt, onnxruntime"]),
        ("onnx_config.input_shape", [2048, 800], "error", "profile-differs", ["(800, 2048)", "[width, height]"]),
    ],
)
def test_a_fault_in_a_deploy_config(tmp_path, key, value, level, code, words):  # noqa: PLR0917
    content = changed(key, value)
    if code == "batch-fixed":
        content["onnx_config"]["dynamic_axes"] = {"cls_logits": {"0": "batch"}}
    path = tmp_path / "deploy_config.json"
    path.write_text(json.dumps(content))
    assert_found(findings(path), level, code, *words)


def test_the_names_in_the_config_against_those_of_the_model(tmp_path):
    """The check that the article asks for, with the ONNX beside the config and with both given."""
    config, model = tmp_path / "deploy_config.json", tmp_path / "end2end.onnx"
    config.write_text(json.dumps(changed("onnx_config.input_shape", [256, 256])))
    model.write_bytes(graph(outputs=("dets", "labels")))
    for found in (findings(config), findings(model, deploy_config=config)):
        assert_found(found, "error", "output-names-differ", "cls_logits, mask_logits", "dets, labels")
    model.write_bytes(graph(input_name="img"))
    assert_found(findings(config), "error", "input-names-differ", "input", "img")
    model.write_bytes(graph())
    assert codes(config, "error") == {"profile-differs"}  # 256 x 256 is below the profile's 320 x 512
    model.write_bytes(graph(side=128, batch=1))
    assert_found(findings(config), "error", "input-shape-differs", "256", "128")
    assert_found(findings(config), "error", "batch-differs", "fixed to 1")


def test_thresholds_against_the_repository(repository, tmp_path):
    config = tmp_path / "deploy_config.json"
    config.write_text(json.dumps(changed("onnx_config.input_shape", [256, 256])))
    found = findings(repository, deploy_config=config)
    assert_found(
        found, "warning", "settings-differ", "score_threshold 0.8 (served: 0.5)", "keep_top_k 100 (served: -1)"
    )


# ---------------------------------------------------------------- ONNX


@pytest.mark.parametrize(
    ("options", "level", "code", "words"),
    [
        ({"domain": "mmdeploy"}, "error", "custom-op", ["mmdeploy::grid_sampler (x1)", "GridSample"]),
        ({"domain": "other"}, "error", "custom-op", ["other::grid_sampler (x1)", "CHECKPOINT"]),
        ({"outputs": ("dets", "masks")}, "error", "output-names", ["cls_logits, mask_logits", "dets, masks"]),
        ({"input_name": "img"}, "error", "input-names", ["img", "'input'"]),
        ({"full": True}, "warning", "full-size-masks", ["40 x 256 x 256", "10.5 MB", "0.655 MB"]),
        ({"full": True, "domain": "mmdeploy"}, "warning", "full-size-masks", ["10.5 MB"]),
        ({"batch": 1}, "warning", "batch-fixed", ["fixed to 1"]),
        ({"first_row": "1"}, "error", "batch-baked", ["batch of 2"]),
        ({"mixed": True}, "error", "batch-baked", ["cls_logits", "standard deviations"]),
        ({"dtype": "float32"}, "note", "float-input", ["0.786 MB", "0.197 MB", "float32_chw"]),
        ({"opset": 13}, "warning", "opset-too-old", ["13", "17"]),
        ({"dtype": "float16"}, "error", "half-io", ["input"]),
        ({"output_type": TensorProto.FLOAT16}, "note", "half-logits", ["cls_logits"]),
        ({"side": 250, "stride": 5}, "warning", "input-size", ["H is 250"]),
        ({"domain": "com.microsoft"}, "warning", "onnxruntime-operator", ["com.microsoft::grid_sampler", "TensorRT"]),
        ({"domain": "com.microsoft"}, "error", "onnxruntime-refuses", ["grid_sampler"]),
        ({"double_grid": True}, "error", "float64-grid-sample", ["/decoder/GridSample"]),
    ],
)
def test_a_fault_in_an_onnx(tmp_path, options, level, code, words):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph(**options))
    assert_found(findings(path), level, code, *words)


def test_outputs_that_changed_places(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph(outputs=("mask_logits", "cls_logits")))
    assert_found(findings(path), "error", "output-rank", "cls_logits has 4 axes", "in this order")


def test_a_graph_that_was_edited_by_hand(tmp_path):
    path = tmp_path / "model.onnx"
    model = onnx.load_from_string(graph())
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, SIDE, SIDE), strict=True):
        dim.dim_value = size
    onnx.save(model, path)
    assert_found(findings(path), "error", "input-layout", "UINT8 [1, 3, 256, 256]", "UINT8 [N, H, W, 3]")
    model.graph.node.pop(0)
    onnx.save(model, path)
    assert_found(findings(path), "error", "onnx-invalid", "float")


def test_a_graph_that_holds_the_head_is_another_kind_of_engine(tmp_path):
    path = tmp_path / "model.onnx"
    model = onnx.load_from_string(graph())
    for name, source, axes in (
        ("scores", "flat", 2),
        ("labels", "flat", 2),
        ("boxes", "logits", 3),
        ("masks", "small", 4),
    ):
        model.graph.node.append(helper.make_node("Identity", [source], [name]))
        shape = ["batch", *(f"{name}_{axis}" for axis in range(1, axes))]
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    for name in ("img_shape", "ori_shape"):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 2]))
    del model.graph.output[:2]
    onnx.save(model, path)
    found = findings(path)
    assert_found(found, "note", "head-kept", "scores, labels, boxes, masks")
    assert len(found) == 1


def test_a_large_graph_is_not_run(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph(first_row="1"))
    found, read = check_onnx(path, trial_bytes=100)
    assert_found(found, "note", "not-run", "0.0001 MB")
    assert len(found) == 1
    assert read.trial is None


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "file-empty"),
        (LFS_POINTER.encode(), "git-lfs-pointer"),
        (graph()[:-400], "onnx-unreadable"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "onnx-unreadable"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "onnx-unreadable"),
    ],
)
def test_a_file_that_is_no_onnx(tmp_path, content, code):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert_found(findings(path), "error", code, "model.onnx")


def test_weights_that_are_not_there(tmp_path):
    path = tmp_path / "model.onnx"
    model = onnx.load_from_string(graph())
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=64)
    assert codes(path) == set()
    weights = tmp_path / "weights.data"
    weights.write_bytes(weights.read_bytes()[:100])
    assert_found(findings(path), "error", "external-data-truncated", "weights.data", "100 bytes")
    with pytest.raises(ExportError, match=r"model\.onnx is not an ONNX model: External data length"):
        load_onnx(path)
    weights.write_text(LFS_POINTER)
    assert_found(findings(path), "error", "git-lfs-pointer", "weights.data")
    with pytest.raises(ExportError, match=r"model\.onnx needs the file of its weights: .*weights\.data is a Git LFS"):
        load_onnx(path)
    weights.unlink()
    assert_found(findings(path), "error", "external-data-missing", "weights.data")
    with pytest.raises(ExportError, match=r"needs the file of its weights: .*weights\.data: no such file"):
        load_onnx(path)


@pytest.mark.parametrize("key", ["offset", "length", "location"])
def test_weights_that_are_nowhere(tmp_path, key):
    model = onnx.load_from_string(graph())
    onnx.external_data_helper.convert_model_to_external_data(model, location="w.data", size_threshold=64)
    onnx.save(model, tmp_path / "model.onnx")
    for entry in model.graph.initializer[0].external_data:
        entry.value = {"offset": "x", "length": "-7", "location": "../../etc/passwd"}.get(key, "")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert codes(tmp_path / "model.onnx", "error")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("files", [20, pytest.param(2000, marks=pytest.mark.chaos)])
def test_a_damaged_onnx_is_judged(tmp_path, files):
    good = [graph(), graph(dtype="float32"), graph(full=True), graph(domain="mmdeploy", opset=13)]
    rng = random.Random(0)
    for _ in range(files):
        (tmp_path / "model.onnx").write_bytes(mutated(rng, rng.choice(good), good))
        assert isinstance(findings(tmp_path / "model.onnx"), list)


# ---------------------------------------------------------------- plans


def plan(tag=b"ftrt", serialization=0, version=(10, 3, 0, 26), length=200, claimed=200):
    head = tag + serialization.to_bytes(4, "little") + bytes(8) + claimed.to_bytes(8, "little") + bytes(version)
    return head.ljust(length, b"\0")[:length]


RTX = {"tag": b"vtrt", "version": (1, 7, 1, 116)}


@pytest.mark.parametrize(
    ("content", "version", "level", "code", "words"),
    [
        (plan(), "10.14", "error", "tensorrt-version", ["10.3.0.26", "10.14"]),
        (plan(), None, "note", "tensorrt-version", ["10.3.0.26", "--tensorrt-version"]),
        (plan(**RTX), "10.3", "error", "tensorrt-rtx-plan", ["TensorRT-RTX 1.7.1.116"]),
        (plan(**RTX, claimed=500), "10.3", "error", "plan-truncated", ["200 bytes", "500"]),
        (plan(length=20), "10.3", "error", "plan-truncated", ["20 bytes"]),
        (plan(serialization=9), "10.3", "note", "plan-version-unknown", []),
        (graph(), "10.3", "error", "plan-is-onnx", ["ONNX"]),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "10.3", "error", "plan-unreadable", ["ftrt"]),
        (b"", "10.3", "error", "file-empty", ["model.plan"]),
        (LFS_POINTER.encode(), "10.3", "error", "git-lfs-pointer", ["git lfs pull"]),
    ],
)
def test_a_fault_in_a_plan(tmp_path, content, version, level, code, words):  # noqa: PLR0917
    path = tmp_path / "model.plan"
    path.write_bytes(content)
    assert_found(findings(path, tensorrt_version=version), level, code, *words)


def test_a_plan_of_the_servers_version(tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(plan())
    assert findings(path, tensorrt_version="10.3") == findings(path, tensorrt_version="10.3.0.26") == []


def test_a_real_plan_of_tensorrt_rtx(tmp_path):
    """The header is undocumented: what is read from it must be what the library says of itself."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse(graph(batch=1, dtype="float32"))
    path = tmp_path / "model.plan"
    path.write_bytes(builder.build_serialized_network(network, builder.create_builder_config()))
    assert_found(findings(path), "error", "tensorrt-rtx-plan", f"TensorRT-RTX {trt.__version__},")
    path.write_bytes(path.read_bytes()[:-1])
    assert_found(findings(path), "error", "plan-truncated")


# ---------------------------------------------------------------- repositories

ENGINE, CPU = "mask2former_engine/config.pbtxt", "mask2former_engine/configs/cpu.pbtxt"
PRE, POST = "mask2former_preprocess/config.pbtxt", "mask2former_postprocess/config.pbtxt"
PAN, SEM = "mask2former_panoptic/config.pbtxt", "mask2former_semantic/config.pbtxt"
TENSOR, PUBLIC = "mask2former_tensor/config.pbtxt", "mask2former/config.pbtxt"


def parameter(key, value):
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def mapped(kind, key, value):
    return f'{kind}_map {{ key: "{key}" value: "{value}" }}'


INNER_RLE, QUERIES_OUT = mapped("output", "inner_rle", "_rle"), mapped("output", "queries", "queries")
STRIDE, SIZE = parameter("mask_stride", 4), parameter("input_size", [SIDE, SIDE])
MAX_PIXELS, SCALE = parameter("max_pixels", 67108864), parameter("scale", [SIDE, SIDE])
UINT8, FLOAT = "TYPE_UINT8 dims: [ 256, 256, 3 ]", "TYPE_FP32 dims: [ 3, 256, 256 ]"
IMG_SHAPE = '"img_shape" data_type: TYPE_INT32 dims: [ 2 ]'
THINGS = parameter("thing_classes", "[0, 1, 2, 3, 4]")
STAR_RING = r", \"star\", \"ring\""

FAULTS = [  # file, what is right, what is planted, code, what the finding has to name
    (POST, STAR_RING, "", "class-names", ["3 names", "5 classes"]),
    (POST, STRIDE, parameter("mask_stride", 8), "mask-stride", ["mask_stride is 8", '"4"']),
    (POST, STRIDE, parameter("mask_stride", "four"), "parameter-invalid", ["mask_stride", "'four'"]),
    (POST, 'string_value: "0.5"', 'string_value: "1.5"', "parameter-invalid", ["score_threshold", "1.5"]),
    (POST, r'"[\"circle\"', r'"[circle', "parameter-invalid", ["class_names"]),
    (POST, STRIDE, parameter("classes", "circle,unicorn"), "parameter-invalid", ["'classes' has no class 'unicorn'"]),
    (POST, STRIDE, parameter("class_score_thresholds", "horn=0.5"), "parameter-invalid", ["has no class 'horn'"]),
    (POST, THINGS, parameter("thing_classes", "[0, -1]"), "parameter-invalid", ["thing_classes", "[0, -1]"]),
    (PAN, THINGS, parameter("thing_classes", "[0]"), "steps-differ", ["thing_classes", "mask2former_panoptic"]),
    (PAN, 'string_value: "0.8"', 'string_value: "8"', "parameter-invalid", ["panoptic_score_threshold", "8"]),
    (POST, parameter("threads", 1), parameter("threads", 0), "parameter-invalid", ["threads", "'0'"]),
    (SEM, STRIDE, parameter("mask_stride", "0"), "parameter-invalid", ["mask_stride", "'0'"]),
    (SEM, STRIDE, parameter("mask_stride", 8), "steps-differ", ["mask_stride", "mask2former_semantic"]),
    (PRE, SCALE, parameter("scale", 256), "parameter-invalid", ["two whole numbers", "got 256"]),
    (PRE, SIZE, parameter("input_size", [256, 2560000]), "parameter-invalid", ["pixels long", "8192"]),
    (PRE, '"pad_value"', '"pad_valeu"', "parameter-invalid", ["pad_valeu", "pad_value"]),
    (PRE, SIZE, parameter("input_size", [256, 512]), "input-size", ["(256, 512)", "(256, 256)"]),
    (PRE, SIZE, "", "input-size", ["multiple of 32", "(256, 256)"]),
    (PRE, MAX_PIXELS, parameter("layout", "float32_chw"), "layout", ["float32_chw", "uint8_hwc"]),
    (PRE, UINT8, FLOAT, "ensemble-types", ["_input", "FP32"]),
    (CPU, "dims: [ 256, 256, 3 ] zero", "dims: [ 512, 512, 3 ] zero", "warmup", ["512", "256", "zeros"]),
    (CPU, 'key: "input" value { data_type', 'key: "img" value { data_type', "warmup", ["'img'", "input"]),
    (CPU, 'name: "mask_logits"', 'name: "masks"', "engine-tensor", ["'masks'", "mask_logits"]),
    (CPU, UINT8, FLOAT, "engine-dtype", ["TYPE_FP32", "TYPE_UINT8"]),
    (CPU, UINT8, "TYPE_UINT8 dims: [ -1, -1, 4 ]", "engine-dims", ["[-1, -1, 4]", "[256, 256, 3]"]),
    (CPU, UINT8, "TYPE_UINT8 dims: [ 256, 512, 3 ]", "engine-dims", ["[256, 512, 3]", "[256, 256, 3]"]),
    (CPU, "max_batch_size: 8", "max_batch_size: 4", "engine-configs-differ", ["cpu.pbtxt"]),
    (ENGINE, "max_batch_size: 8", "max_batch_size: 4", "ensemble-batch", ["8", "4", "mask2former_engine"]),
    (ENGINE, "dynamic_batching {", "response_cache { enable: true } dynamic_batching {", "response-cache", ["cache"]),
    (ENGINE, 'name: "mask2former_engine"', 'name: "engine"', "config-name", ['"engine"', '"mask2former_engine"']),
    (PUBLIC, "max_batch_size: 8", "max_batch_size: eight", "config-unreadable", ["eight", "mask2former/config.pbtxt"]),
    (PUBLIC, '"mask2former_postprocess"', '"mask2former_post"', "ensemble-model-missing", ["mask2former_post"]),
    (PUBLIC, mapped("input", "img_shape", "_img_shape"), "", "ensemble-map", ["img_shape", "mask2former_postprocess"]),
    (PUBLIC, QUERIES_OUT, mapped("output", "query", "queries"), "ensemble-map", ["query", "mask2former_postprocess"]),
    (PUBLIC, INNER_RLE, "", "ensemble-tensor-unmade", ["'_rle'", "mask2former_masks"]),
    (PUBLIC, INNER_RLE, mapped("output", "inner_rle", "rle"), "ensemble-tensor-twice", ["'rle'"]),
    (PUBLIC, mapped("input", "rle", "_rle"), mapped("input", "rle", "rle"), "ensemble-leaf", ["'rle'", "deadlock"]),
    (PUBLIC, '"scores" data_type: TYPE_FP32', '"scores" data_type: TYPE_FP16', "ensemble-types", ["'scores'", "FP16"]),
    (TENSOR, IMG_SHAPE, f"{IMG_SHAPE} optional: true", "ensemble-optional", ["img_shape"]),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[3]}-{fault[4][0]}")
def test_a_fault_in_a_repository(repository, fault):
    file, old, new, code, words = fault
    edit(repository / file, old, new)
    assert_found(findings(repository), "error", code, *words)


def test_an_input_that_the_first_step_does_not_read(repository):
    """The order that looks natural, engine first, deadlocks a request for the logits alone."""
    path = repository / TENSOR
    head, steps = path.read_text().split("  step [\n")
    post, engine, rest = steps.split("    },\n", 2)
    path.write_text(f"{head}  step [\n{engine}    }},\n{post}    }},\n{rest}")
    assert_found(findings(repository), "error", "ensemble-first-step", "img_shape", "mask2former_postprocess first")


def test_a_queue_that_loses_wake_ups(repository):
    assert "queue-policy" not in codes(repository)
    edit(repository / PRE, "count: 2", "count: 1")
    assert_found(findings(repository), "warning", "queue-policy", "mask2former_preprocess", "count: 2")
    edit(repository / PRE, "count: 1", "count: 2")
    policy = "dynamic_batching { default_queue_policy { max_queue_size: 64 }"
    edit(repository / ENGINE, "dynamic_batching {", policy)
    assert_found(findings(repository), "warning", "queue-policy", "mask2former_engine", "remove default_queue_policy")


def test_a_slip_of_the_pen_in_a_parameter(repository):
    edit(repository / POST, "square", "circle")
    assert_found(findings(repository), "warning", "class-names-twice", "circle")
    edit(repository / POST, '"keep_top_k"', '"keep_topk"')
    assert_found(findings(repository), "warning", "parameter-unknown", "keep_topk", "keep_top_k")
    edit(repository / SEM, '"background_label_id"', '"panoptic_score_threshold"')
    assert_found(findings(repository), "warning", "parameter-unknown", "panoptic_score_threshold", "mask_stride")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"batch": 1}, "batch-fixed", ["fixed to 1", "max_batch_size: 0"]),
        ({"first_row": "1"}, "batch-baked", ["batch of 2"]),
        ({"side": 128}, "input-size", ["(256, 256)", "(128, 128)"]),
        ({"side": 128}, "warmup", ["[256, 256, 3]", "[128, 128, 3]"]),
        ({"dtype": "float32"}, "engine-dtype", ["TYPE_UINT8", "FLOAT"]),
        ({"dtype": "float32"}, "layout", ["uint8_hwc", "float32_chw"]),
        ({"full": True}, "mask-stride", ["4", '"1"']),
        ({"outputs": ("cls", "masks")}, "engine-tensor", ["cls_logits", "cls, masks"]),
    ],
)
def test_another_engine_in_the_repository(repository, options, code, words):
    (repository / "mask2former_engine/1/model.onnx").write_bytes(graph(**options))
    assert_found(findings(repository), "error", code, *words)


def test_files_that_are_missing(repository):
    engine = repository / "mask2former_engine/1"
    (engine / "model.onnx").unlink()
    assert_found(findings(repository), "error", "engine-missing", "model.plan", "model.onnx")
    (engine / "model.plan").write_bytes(plan())
    found = findings(repository, tensorrt_version="10.3")
    assert_found(found, "warning", "engine-missing", "model.onnx", "cpu.pbtxt", "`m2f serve` works")
    assert not [f for f in found if f.level == "error"]
    (repository / "mask2former_masks/1/model.py").unlink()
    assert_found(findings(repository), "error", "model-file-missing", "mask2former_masks", "model.py")
    shutil.rmtree(repository / "mask2former/1")
    assert_found(findings(repository), "error", "version-missing", "mask2former", "1/")
    (repository / "mask2former_raw/config.pbtxt").unlink()
    assert_found(findings(repository), "error", "config-missing", "mask2former_raw")


@pytest.mark.parametrize("file", ["mask2former_engine/1/model.onnx", "mask2former_engine/1/model.py", PUBLIC])
def test_an_empty_file_and_a_pointer(repository, file):
    (repository / file).write_text("")
    assert_found(findings(repository), "error", "file-empty", Path(file).name)
    (repository / file).write_text(LFS_POINTER)
    assert_found(findings(repository), "error", "git-lfs-pointer", Path(file).name)
    (repository / file).write_text("<!DOCTYPE html>")
    assert_found(findings(repository), "error", "web-page", Path(file).name)


def test_a_configuration_that_is_a_folder(repository):
    (repository / PUBLIC).unlink()
    (repository / PUBLIC).mkdir()
    assert_found(findings(repository), "error", "file-unreadable", "config.pbtxt", "is a folder")


def folder(*path):
    return lambda repository: repository.joinpath(*path).mkdir(parents=True)


def link(path, target):
    return lambda repository: (repository / path).symlink_to(target)


def moved(old, new):
    return lambda repository: (repository / old).rename(repository / new)


MODEL = "mask2former_raw"
STRAYS = {
    "git": (folder(".git", "objects"), "stray-folder", [".git", "hidden ones too"]),
    "lost+found": (folder("lost+found"), "stray-folder", ["lost+found"]),
    "notebook": (folder(".ipynb_checkpoints"), "stray-folder", [".ipynb_checkpoints"]),
    "python": (folder("__pycache__"), "stray-folder", ["__pycache__"]),
    "volume of Kubernetes": (folder("..2026_11_28"), "stray-folder", ["..2026_11_28"]),
    "empty": (folder("new_model"), "stray-folder", ["new_model"]),
    "pictures": (folder("images", "val"), "stray-folder", ["images"]),
    "no configuration": (folder("new_model", "1"), "config-missing", ["new_model"]),
    "dangling link": (link("old", "/nowhere/old"), "link-dangling", ["old", "/nowhere/old"]),
    "circle of links": (link("old", "old"), "link-dangling", ["old"]),
    "dangling link in a model": (link(f"{MODEL}/data", "/nowhere"), "link-dangling", ["data", "/nowhere"]),
    "dangling version": (link(f"{MODEL}/2", "/nowhere"), "link-dangling", ["2"]),
    "a copy of a version": (folder(MODEL, "2.bak"), "version-name", ["2.bak", "version 2"]),
    "no version": (moved(f"{MODEL}/1", f"{MODEL}/01"), "version-missing", [MODEL]),
    "too large a version": (folder(MODEL, "9" * 19), "version-name", ["9" * 19]),
    "an empty version": (folder(MODEL, "2"), "model-file-missing", ["model.py"]),
    "a name for a shell": (moved(MODEL, "mask2former raw"), "model-name", ["mask2former raw"]),
    "a name that is not ASCII": (moved(MODEL, "übung"), "model-name", ["übung"]),
}


@pytest.mark.parametrize("case", STRAYS)
def test_what_keeps_a_server_from_starting(repository, case):
    change, code, words = STRAYS[case]
    change(repository)
    assert_found(findings(repository), "error", code, *words)
    assert run(repository).exit_code == 1


@pytest.mark.parametrize("what", [MODEL, PUBLIC, "mask2former_masks/1/model.py", "mask2former_engine/1/model.onnx"])
def test_what_cannot_be_read(repository, what):
    (repository / what).chmod(0)
    with unprivileged(repository):
        assert_found(findings(repository), "error", "file-unreadable", Path(what).name, "Permission denied")
        assert run(repository).exit_code == 1
    (repository / what).chmod(0o700)


def harmless(repository):
    for name in (".DS_Store", "README.md", ".gitattributes", "Thumbs.db", f"{MODEL}/.DS_Store", f"{MODEL}/1/notes.txt"):
        (repository / name).write_text("x")
    for name in (".git", "old", "1.bak", "-1", "007", "data"):
        (repository / MODEL / name).mkdir()
    os.mkfifo(repository / "pipe")
    (repository / MODEL / "1" / "gone").symlink_to("/nowhere")
    elsewhere = repository.parent / "elsewhere"
    (repository / "mask2former_masks").rename(elsewhere)
    (repository / "mask2former_masks").symlink_to(elsewhere)


def test_what_triton_passes_over_is_left_alone(repository):
    harmless(repository)
    assert codes(repository, "error") == set()


@pytest.mark.server
@pytest.mark.more
@pytest.mark.parametrize(
    "case",
    ["git", "lost+found", "dangling link", "dangling link in a model", "a copy of a version", "too large a version"],
)
def test_the_server_does_not_start_on_it(tmp_path, case):
    """What doctor calls an error, the real server does not survive."""
    from m2f_server import serve
    from m2f_server.serve_errors import ServeError

    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    tiny = tmp_path / "repository" / MODEL
    (tiny / "1").mkdir(parents=True)
    (tiny / "1/model.py").write_text("class TritonPythonModel:\n    def execute(self, requests):\n        return []\n")
    (tiny / "config.pbtxt").write_text(TINY)
    STRAYS[case][0](tmp_path / "repository")
    with pytest.raises(ServeError), serve(model_repository=tmp_path / "repository", timeout=3, **ports):
        pass


def test_a_plan_of_another_version_in_the_repository(repository):
    (repository / "mask2former_engine/1/model.plan").write_bytes(plan())
    assert_found(findings(repository, tensorrt_version="10.14"), "error", "tensorrt-version", "10.3.0.26", "10.14")


# ---------------------------------------------------------------- the server


@pytest.mark.parametrize(
    ("version", "safe"),
    [("2.71.0", True), ("2.70.0", False), ("2.51", False), ("3.0", True), ("26.07", True), ("25.12", False)],
)
def test_versions_of_the_server(version, safe):
    assert is_safe(version) == safe


def test_an_old_server_is_named(repository):
    found = findings(repository, server_version="24.10")
    assert_found(found, "warning", "server-too-old", "24.10", "2.71.0", "26.07")


@pytest.mark.parametrize(
    ("stated", "file", "version"),
    [
        ("2.51.0", None, "2.51.0"),
        ("2.52.0dev", None, "2.52.0"),
        (None, "2.60.0\n", "2.60.0"),
        ("main", "2.60.0", None),
        (None, "\xff", None),
        (None, None, None),
    ],
)
def test_the_version_of_the_server_found_here(repository, monkeypatch, stated, file, version):
    """A version that cannot be read, of a server of one's own, is not known."""
    home = repository.parent / "tritonserver"
    (home / "bin").mkdir(parents=True)
    (home / "bin/tritonserver").touch(mode=0o755)
    if file is not None:
        (home / "TRITON_VERSION").write_bytes(file.encode("latin-1"))
    monkeypatch.setenv("PATH", str(home / "bin"))
    monkeypatch.setenv("TRITON_SERVER_VERSION", stated) if stated else monkeypatch.delenv(
        "TRITON_SERVER_VERSION", raising=False
    )
    assert (found_server() or [None])[0] == version
    assert run(repository).exit_code == 0


# ---------------------------------------------------------------- the command


def run(*args):
    return CliRunner().invoke(doctor, [str(arg) for arg in args])


def test_the_command(repository):
    fine = run(repository, "--server-version", "2.71.0")
    assert fine.exit_code == 0, fine.output
    assert "repository (repository): 1 warning, 1 note" in fine.output.replace(str(repository.parent) + "/", "")
    edit(repository / POST, STAR_RING, "")
    wrong = run(repository, "--server-version", "2.71.0", "--json")
    assert wrong.exit_code == 1
    content = json.loads(wrong.output)
    assert (content["path"], content["kind"]) == (str(repository), "repository")
    assert [f["level"] for f in content["findings"]] == ["error", "error", "warning", "note"]  # panoptic: 5 names
    assert [f["code"] for f in content["findings"][:2]] == ["steps-differ", "class-names"]
    assert set(content["findings"][0]) == {"level", "code", "where", "what", "why", "fix"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("checkpoint.pth", b"PK", "does not read checkpoints"),
        ("photo.png", b"\x89PNG", "doctor reads a deploy config"),
        ("detectron2.pkl", b"\x80", "does not read checkpoints"),
        ("nothing.onnx", None, "does not exist"),
        ("pipe.json", os.mkfifo, "is not a regular file"),
    ],
)
def test_what_doctor_does_not_read_is_wrong_usage(tmp_path, name, content, message):
    if content is os.mkfifo:
        os.mkfifo(tmp_path / name)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    result = run(tmp_path / name)
    assert result.exit_code == 2
    assert message in result.output


def test_names_that_no_terminal_shows_are_printed(repository):
    """A name that is not UTF-8, and one that a terminal would obey."""
    for name in (b"m\xff", b"m\x1b[2J"):
        os.mkdir(os.fsencode(repository) + b"/" + name)  # noqa: PTH102 (a path of text cannot say it)
    command = [sys.executable, "-c", "from m2f_cli.main import main; main()", "doctor", repository]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command, capture_output=True, text=True, env=strict, check=False)
    assert result.returncode == 1
    assert result.stderr == ""
    assert "m\ufffd is a folder without" in result.stdout
    assert "m\ufffd[2J is a folder without" in result.stdout


def test_an_option_that_does_not_fit_is_wrong_usage(repository, tmp_path):
    (tmp_path / "model.plan").write_bytes(plan())
    (tmp_path / "deploy.json").write_text(json.dumps(ISSUE_2775))
    for arguments, message in (
        ([repository, "--server-version", "latest"], "'latest' is neither"),
        ([tmp_path / "model.plan", "--tensorrt-version", "10"], "'10' is no version of TensorRT"),
        ([tmp_path / "model.plan", "--deploy-config", tmp_path / "deploy.json"], "only an ONNX or a repository"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in result.output


def test_folders_that_are_no_repository(tmp_path):
    assert_found(findings(tmp_path), "error", "repository-empty", "no model")
    (tmp_path / ".git").mkdir()
    shutil.copytree(SHIPPED / "mask2former", tmp_path / "models/mask2former")
    assert_found(findings(tmp_path), "error", "repository-empty", f"m2f doctor {tmp_path}/models")
    (tmp_path / "config.json").write_text('{"architectures": ["Mask2FormerForUniversalSegmentation"]}')
    assert_found(findings(tmp_path), "error", "repository-empty", "Hugging Face", f"m2f export {tmp_path}")
    model = SHIPPED / "mask2former"
    assert run(model, "--server-version", "2.71.0").exit_code == 1
