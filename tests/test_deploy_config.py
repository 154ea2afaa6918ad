"""MMDeploy's deploy configs, in every form they come in."""

import contextlib
import json
import subprocess
import sys

import hypothesis
import pytest
from deploy_configs import DEPLOY, ISSUE_2775, changed
from json_mutations import mutated_json

from m2f.settings import Settings
from m2f_export.deploy_config import DeployConfig, ShapeRange, read_deploy_config
from m2f_export.export_errors import ExportError

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4838904\n"

SETTINGS = Settings(
    score_threshold=0.8, iou_threshold=0.5, max_output_boxes_per_class=200, pre_top_k=5000, keep_top_k=100
)


def written(folder, content, name="deploy_config.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_config_of_the_issue(tmp_path):
    config = read_deploy_config(written(tmp_path, ISSUE_2775))
    assert config.settings == SETTINGS
    assert (config.input_names, config.output_names) == (("input",), ("cls_logits", "mask_logits"))
    assert (config.opset, config.save_file, config.backend, config.fp16) == (13, "end2end.onnx", "tensorrt", True)
    assert config.input_shape == (800, 1344)  # MMDeploy writes width, height
    assert config.dynamic_axes == {"input": {0: "batch"}, "cls_logits": {0: "batch"}}
    assert config.shapes == {
        "input": ShapeRange(minimum=(1, 3, 320, 512), optimum=(1, 3, 800, 1344), maximum=(2, 3, 1344, 1344))
    }
    assert config.max_workspace_size == 1 << 30
    assert config.ignored == ("onnx_config.export_params", "onnx_config.keep_initializers_as_inputs")


def test_the_panoptic_rules_of_the_model_hold_where_the_deploy_config_is_silent():
    own = Settings(panoptic_score_threshold=0.4, panoptic_overlap_threshold=0.6, panoptic_filter_low_score=False)
    deploy = DeployConfig(settings=Settings(score_threshold=0.3, panoptic_overlap_threshold=0.5))
    assert deploy.settings_for(own) == Settings(
        score_threshold=0.3, panoptic_score_threshold=0.4, panoptic_overlap_threshold=0.5,
        panoptic_filter_low_score=False,
    )  # fmt: skip


def test_absent_sections_are_the_defaults(tmp_path):
    config = read_deploy_config(written(tmp_path, {"onnx_config": {"input_shape": None}}))
    assert config.settings == Settings()
    assert (config.input_shape, config.backend, config.fp16, config.shapes) == (None, None, False, {})
    assert config.ignored == ()


@pytest.mark.torch
def test_python_with_bases(tmp_path):
    written(tmp_path, f"codebase_config = {ISSUE_2775['codebase_config']}", "base.py")
    override = """
_base_ = ['./base.py']
codebase_config = dict(post_processing=dict(score_threshold=0.25))
ir_config = dict(type='onnx', opset_version=17, dynamic_axes={'input': {0: 'batch', 2: 'height'}})
backend_config = dict(type='onnxruntime', precision='fp16')
"""
    config = read_deploy_config(written(tmp_path, override, "mine.py"))
    assert config.settings.score_threshold == 0.25
    assert config.settings.keep_top_k == 100
    assert (config.opset, config.backend, config.fp16) == (17, "onnxruntime", True)
    assert config.dynamic_axes == {"input": {0: "batch", 2: "height"}}


@pytest.mark.torch
def test_a_missing_base_is_named(tmp_path):
    path = written(tmp_path, "_base_ = ['../_base_/base_panoptic-seg_static.py']", "mine.py")
    with pytest.raises(ExportError, match=r"mine\.py: its `_base_` is missing: .*base_panoptic-seg_static\.py"):
        read_deploy_config(path)


def test_json_needs_neither_mmengine_nor_torch(tmp_path):
    program = (
        "import sys; from pathlib import Path; from m2f_export.deploy_config import read_deploy_config; "
        f"read_deploy_config(Path({str(written(tmp_path, ISSUE_2775))!r})); "
        "assert not {'mmengine', 'torch', 'mmdeploy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"input": [0, 2]}, {"input": {0: "input_0", 2: "input_2"}}),
        ([[0], [0]], {"input": {0: "input_0"}, "cls_logits": {0: "cls_logits_0"}}),
        (None, {}),
    ],
)
def test_every_spelling_of_dynamic_axes(tmp_path, axes, expected):
    path = written(tmp_path, changed("onnx_config.dynamic_axes", axes))
    assert read_deploy_config(path).dynamic_axes == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("codebase_config.post_processing.confidence_threshold", 0.005),
        ("codebase_config.post_processing.mask_thr_binary", 0.5),
        ("codebase_config.post_processing.scoer_threshold", 0.5),
        ("onnx_config.optimize", True),
        ("backend_config.common_config.int8_mode", True),
        ("calib_config", {"create_calib": True}),
    ],
)
def test_what_is_not_read_is_listed(tmp_path, key, value):
    config = read_deploy_config(written(tmp_path, changed(key, value)))
    assert key in config.ignored
    assert config.settings == SETTINGS


SDK_PIPELINE = {
    "pipeline": {
        "input": ["img"],
        "tasks": [
            {"type": "Task", "module": "Transform", "name": "Preprocess", "transforms": []},
            {"type": "Task", "module": "Net", "name": "mask2former", "input_map": {"img": "input"}, "output_map": {}},
            {
                "type": "Task",
                "module": "mmdet",
                "name": "postprocess",
                "component": "ResizeBBox",
                "params": {"max_per_image": 50, "iou_thr": 0.7, "filter_low_score": False},
            },
        ],
    }
}
SDK_DEPLOY = {
    "version": "1.3.1",
    "task": "Detector",
    "models": [{"name": "mask2former", "net": "end2end.engine", "backend": "tensorrt", "precision": "FP16"}],
    "customs": [],
}


def test_the_sdks_files_alone(tmp_path):
    pipeline = read_deploy_config(written(tmp_path, SDK_PIPELINE, "pipeline.json"))
    # iou_thr is the panoptic overlap, not NMS
    assert pipeline.settings == Settings(pre_top_k=50, panoptic_overlap_threshold=0.7, panoptic_filter_low_score=False)
    assert pipeline.input_names == ("input",)
    deploy = read_deploy_config(written(tmp_path, SDK_DEPLOY, "deploy.json"))
    assert (deploy.backend, deploy.fp16, deploy.settings) == ("tensorrt", True, Settings())


@pytest.mark.parametrize(("name", "content"), [("pipeline.json", SDK_PIPELINE), ("deploy.json", SDK_DEPLOY)])
def test_the_sdks_detail_says_more(tmp_path, name, content):
    record = {"version": "1.3.1", "codebase": {"task": "ObjectDetection"}, "calib_config": {}}
    written(tmp_path, record | ISSUE_2775, "detail.json")
    config = read_deploy_config(written(tmp_path, content, name))
    assert (config.settings, config.opset) == (SETTINGS, 13)
    assert "version" not in config.ignored


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("codebase_config.post_processing.score_threshold", 1.5, r"score_threshold' must be a number from 0 to 1; got"),
        ("codebase_config.post_processing.score_threshold", "0.8", r"score_threshold' must be .* got '0\.8'"),
        ("codebase_config.post_processing.keep_top_k", 0, r"keep_top_k' must be .* >= 1, or -1"),
        ("codebase_config.post_processing.background_label_id", 80, r"background_label_id' must be -1"),
        ("codebase_config.post_processing", [1], r"codebase_config\.post_processing' must be an object; got \[1\]"),
        ("codebase_config.type", "mmseg", r"codebase_config\.type' must be 'mmdet'; got 'mmseg'"),
        ("onnx_config.type", "torchscript", r"onnx_config\.type' must be 'onnx'"),
        ("onnx_config.input_shape", [800], r"onnx_config\.input_shape' must be \[width, height\]"),
        ("onnx_config.input_shape", [1344, -1], r"onnx_config\.input_shape' must be"),
        ("onnx_config.opset_version", "17", r"onnx_config\.opset_version' must be a whole number >= 1; got '17'"),
        ("onnx_config.output_names", "cls_logits", r"onnx_config\.output_names' must be a list of strings"),
        ("onnx_config.dynamic_axes", {"input": {"zero": "batch"}}, r"onnx_config\.dynamic_axes' must be"),
        ("backend_config.common_config.fp16_mode", 1, r"common_config\.fp16_mode' must be true or false; got 1"),
        ("backend_config.common_config.max_workspace_size", -1, r"max_workspace_size' must be bytes"),
        ("backend_config.model_inputs", [{}, {}], r"model_inputs' must be a list of one object"),
        ("backend_config.model_inputs", [{"input_shapes": {"input": {}}}], r"input\.min_shape' is missing"),
        (
            "backend_config.model_inputs",
            [{"input_shapes": {"input": dict.fromkeys(("min_shape", "opt_shape"), [2] * 4) | {"max_shape": [1] * 4}}}],
            r"min_shape <= opt_shape <= max_shape",
        ),
    ],
)
def test_a_wrong_value_is_named(tmp_path, key, value, message):
    with pytest.raises(ExportError, match=rf"deploy_config\.json: .*{message}"):
        read_deploy_config(written(tmp_path, changed(key, value)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.json", '{"onnx_config": ', "is not JSON: "),
        ("deep.json", '{"onnx_config": ' + "[" * 100_000, "is not JSON: maximum recursion"),
        ("twice.json", '{"onnx_config": {"type": 1, "type": 2}}', "is not JSON: the key 'type' is there twice"),
        ("empty.json", "", "is empty"),
        ("pointer.json", LFS_POINTER, "is a Git LFS pointer"),
        ("pointer.py", LFS_POINTER, "is a Git LFS pointer"),
        ("list.json", "[1]", "holds list, not an object"),
        ("number.json", "1", "holds int, not an object"),
        ("other.json", '{"model": {}}', "not a deploy config: .* its keys: model"),
        ("config.yaml", "a: 1", r"is a \.py or \.json file"),
        pytest.param("broken.py", "onnx_config = (", "cannot be read as an mmengine config", marks=pytest.mark.torch),
        pytest.param(
            "raises.py", "raise ValueError('no')", "cannot be read as an mmengine config: no", marks=pytest.mark.torch
        ),
        pytest.param(
            "ends.py", "import sys; sys.exit(3)", "cannot be read as an mmengine config: 3", marks=pytest.mark.torch
        ),
    ],
)
def test_a_file_that_is_no_deploy_config(tmp_path, name, content, message):
    with pytest.raises(ExportError, match=rf"{name}.* {message}"):
        read_deploy_config(written(tmp_path, content, name))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_deploy_config_is_utf_8(tmp_path, encoding):
    """A byte order mark before it does no harm; Windows writes one."""
    text = json.dumps(DEPLOY | {"note": "größer"}, ensure_ascii=False)
    path = tmp_path / "deploy_config.json"
    path.write_bytes(text.encode(encoding))
    if encoding == "utf-8-sig":
        assert read_deploy_config(path).settings.score_threshold == 0.8
    else:
        with pytest.raises(ExportError, match=r"deploy_config\.json is not text in UTF-8"):
            read_deploy_config(path)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "deploy_config.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 40)
    with pytest.raises(ExportError, match=r"deploy_config\.json is larger than a configuration can be"):
        read_deploy_config(path)


@pytest.mark.parametrize("examples", [40, pytest.param(4000, marks=pytest.mark.chaos)])
def test_any_other_value_is_read_or_refused(tmp_path, examples):
    path = tmp_path / "deploy_config.json"

    @hypothesis.settings(max_examples=examples, database=None)
    @hypothesis.given(mutated_json(DEPLOY))
    def check(content):
        path.write_text(json.dumps(content))
        with contextlib.suppress(ExportError):
            read_deploy_config(path)

    check()


def test_no_such_file(tmp_path):
    with pytest.raises(ExportError, match=r"nothing\.json: no such file"):
        read_deploy_config(tmp_path / "nothing.json")
