"""`m2f export` as a user runs it, up to the server that serves what it made."""

import contextlib
import json
import re
import shutil

import numpy as np
import onnxruntime as ort
import pytest
from exports import compare_on, m2f_export
from kserve import connect
from sources import CHECKPOINT, COMMITTED, CONFIG, ROOT, pure_python_config
from tritonclient.utils import InferenceServerException

from m2f.contract import STRUCTURED_OUTPUTS, models_of
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_client import Client
from m2f_server.launch import serve

pytestmark = [pytest.mark.torch, pytest.mark.server, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

IMAGES = sorted((ROOT / "examples/images").glob("scene_*"))


def test_an_engine_is_built_beside_the_graph(exported):
    """Here TensorRT-RTX: its plan bears a name that Triton does not load, and the report says so."""
    target, report = exported
    engine = report["engine"]
    assert engine["backend"] == "TensorRT-RTX"
    assert (target / "mask2former_engine/1/model.rtx.plan").stat().st_size == engine["size"] > 1e6
    assert not (target / "mask2former_engine/1/model.plan").exists()
    assert engine["target"] == "26.07-py3"
    assert "TensorRT-RTX" in engine["target_message"]
    assert engine["profile"] == report["profile"]
    assert engine["comparison"] is None  # no GPU runs it
    assert (target.parent / "timing.cache").stat().st_size > 0


@pytest.mark.parametrize("option", [("--target", "26.07-py3"), ("--timing-cache", "timing.cache")])
def test_what_is_an_engines_is_refused_without_one(option, tmp_path):
    result = m2f_export(CONFIG, CHECKPOINT, "--repository", tmp_path / "mine", *option)
    assert result.exit_code == 1
    assert "add --engine" in result.output


def test_every_step_is_compared_and_reported(exported):
    target, report = exported
    steps = {step["name"]: step for step in report["comparison"]["steps"]}
    assert report["comparison"]["first"] == "PyTorch"
    assert list(steps) == ["ONNX Runtime", "fp16", "fp16, CPU", "Triton"]
    assert steps["ONNX Runtime"]["mask_max"] <= 1e-3
    assert steps["fp16"]["cls_max"] > 0
    assert steps["Triton"]["mask_max"] == steps["Triton"]["cls_max"] == 0  # the same graph on the same machine
    for step in steps.values():
        assert step["instances"] > 20
    for exact in (steps["ONNX Runtime"], steps["Triton"]):
        assert (exact["matched"], exact["extra"]) == (exact["instances"], 0)
        assert exact["iou"] >= 0.9999
        assert exact["score_max"] <= 1e-4
    assert json.loads((target / "mask2former/export.json").read_text()) == report
    assert {"read", "ONNX", "fp16", "Triton"} <= {step["step"] for step in report["steps"]}
    assert all(step["seconds"] >= 0 and step["peak_memory_mib"] > 0 for step in report["steps"])


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_what_it_serves_is_what_the_shipped_repository_serves(export_server, server, image):
    with Client(f"grpc://{server.grpc_url}") as shipped, Client(f"grpc://{export_server.grpc_url}") as mine:
        wanted, found = shipped.predict(image), mine.predict(image)
        assert mine.class_names == shipped.class_names
    assert len(found) == len(wanted) > 0
    np.testing.assert_allclose(np.sort(found.scores), np.sort(wanted.scores), atol=0.02)  # half against full precision


def test_the_graph_alone_is_the_committed_one_and_the_table_is_for_people(tmp_path):
    result = m2f_export(CONFIG, CHECKPOINT, "--onnx", tmp_path / "model.onnx", "--size", 256, 256)
    assert result.exit_code == 0, result.output
    assert "ONNX Runtime" in result.stdout
    assert "matched" in result.stdout
    assert f"wrote {tmp_path / 'model.onnx'}" in result.stdout.replace("\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    shipped = Preprocessing(scale=(256, 256), input_size=(256, 256), pad_value=(124, 116, 104))
    batch = shipped([path.read_bytes() for path in IMAGES])[0]
    anew, committed = (
        ort.InferenceSession(path).run(["cls_logits", "mask_logits"], {"input": batch})
        for path in (tmp_path / "model.onnx", COMMITTED)
    )
    for ours, theirs in zip(anew, committed, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert CHECKPOINT.stat().st_size < 8e6
    assert COMMITTED.stat().st_size < 8e6


KEYS_AND_OTHERS = {  # key of the deploy config -> a value with which the answer must change
    "score_threshold": 0.0,
    "iou_threshold": 0.0,
    "max_output_boxes_per_class": 1,
    "pre_top_k": 1,
    "keep_top_k": 1,
    "background_label_id": 0,
    "export_postprocess_mask": False,
}


def test_from_mmdeploys_own_export_to_instances(tmp_path, mmdeploys_onnx, deploy_config):
    """The road that people get stuck on: MMDeploy's ONNX and deploy config in, instances out; each key acts.

    Under a name of its own: the comparison through Triton asks the model of this name, and so do clients.
    """
    target = tmp_path / "mine"
    result = m2f_export(
        CONFIG, mmdeploys_onnx, "--deploy-config", deploy_config, "--repository", target, "--name", "parts",
        *compare_on(IMAGES[:1]),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    stated = json.loads(deploy_config.read_text())["codebase_config"]["post_processing"]
    assert stated.keys() == KEYS_AND_OTHERS.keys()
    one_library = target / "parts_engine/configs/cpu.pbtxt"  # else another answers while a size is compiled
    one_library.write_text(one_library.read_text().replace('"auto"', '"onnxruntime"'))
    with (
        serve(model_repository=target, config_name="cpu", http_port=0, grpc_port=0, metrics_port=0) as server,
        Client(f"grpc://{server.grpc_url}", model="parts") as client,
    ):
        report = json.loads((target / "parts/export.json").read_text())
        assert report["name"] == "parts"
        assert {path.name for path in target.iterdir()} == set(report["models"]) == set(models_of("parts", head=False))
        assert (target / "parts/labels.txt").read_text().split() == report["class_names"] == list(client.class_names)

        def ask(**parameters):
            return client.predict(IMAGES[0], outputs=STRUCTURED_OUTPUTS, **parameters).outputs

        as_stated = ask()
        assert len(as_stated["scores"]) > 1
        assert as_stated["scores"].min() >= stated["score_threshold"]
        # the repository's own values are those of the deploy config: saying them changes nothing, another does
        for key, other in KEYS_AND_OTHERS.items():
            # below the confident ones there is enough for every key to act on
            loose = {} if key == "score_threshold" else {"score_threshold": 0.0}
            unsaid, said, changed = ask(**loose), ask(**loose, **{key: stated[key]}), ask(**loose, **{key: other})
            assert all(np.array_equal(said[name], unsaid[name]) for name in said), key
            assert any(not np.array_equal(changed[name], unsaid[name]) for name in changed), key
        assert_input_must_be_finite(server)


def assert_input_must_be_finite(server):
    """MMDeploy's graph reads normalised floats, and so does its server's `input`."""
    triton = connect(server, "grpc")
    sizes = {name: np.array([[256, 256]], np.int32) for name in ("img_shape", "ori_shape")}
    floats = np.zeros((1, 3, 256, 256), np.float32)
    with contextlib.closing(triton.client):
        assert triton.infer("parts_tensor", {"input": floats, **sizes}, ["num_instances"])
        for bad in (np.nan, np.inf):
            floats[0, 1, 2, 3] = bad
            with pytest.raises(InferenceServerException, match="input must be finite") as refused:
                triton.infer("parts_tensor", {"input": floats, **sizes}, ["num_instances"])
            assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "index", [pytest.param(i, marks=pytest.mark.official if i else pytest.mark.more) for i in range(4)]
)
def test_a_hugging_face_folder_is_served(tmp_path, index):
    """Mask2Former, MaskFormer and EoMT: one contract, up to what Triton answers."""
    from huggingface_models import ARCHITECTURES, NAMES, save

    result = m2f_export(save(tmp_path / "model", ARCHITECTURES[index]), "--repository", tmp_path / "mine", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["class_names"] == NAMES
    assert "does not say which classes are stuff: all are served as things" in result.stderr.replace("\n", " ")
    assert [step["name"] for step in report["comparison"]["steps"]] == ["ONNX Runtime", "Triton"]
    assert report["comparison"]["steps"][1]["mask_max"] <= 1e-3


@pytest.fixture
def old(tmp_path, exported):
    """An export that is there already."""
    target = tmp_path / "mine"
    shutil.copytree(exported[0], target)
    return target


def tree(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG, CHECKPOINT, "--size", 256, 256, "--tolerance", 1e-9], r"ONNX Runtime drifts .*allowed 1e-09"),
        ([CONFIG, CHECKPOINT, "--size", 250, 256], "multiples of 32"),
        ([CONFIG, CHECKPOINT, "--size", 64, 64, "--image", "nothing.jpg"], "nothing.jpg: no such file"),
        ([CONFIG, CHECKPOINT, "--size", 64, 64, "--image", ROOT], "is a folder; allowed: a file"),
        ([CONFIG, CHECKPOINT, "--size", 10**6, 10**6], "allowed: up to 8192 pixels a side"),
        ([CONFIG, "end2end.onnx", "--size", 64, 64], "has its own input size"),
        ([CONFIG, CHECKPOINT, "--head", "full", "--precision", "bf16"], "give fp32 or fp16"),
        ([CONFIG], "needs its checkpoint"),
        ([CONFIG, "nothing.pth"], "nothing.pth: no such file"),
        ([ROOT / "README.md", CHECKPOINT], "not a configuration"),
        ([ROOT / "examples", CHECKPOINT], "is one too many"),
        ([ROOT / "examples"], "config.json"),
        ([CONFIG, CHECKPOINT, "--deploy-config", ROOT / "README.md"], "deploy config"),
    ],
)
def test_what_fails_is_named_and_the_old_repository_stays(old, arguments, message):
    before = tree(old)
    result = m2f_export(*arguments, "--repository", old)
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert tree(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["mine"]


@pytest.mark.more
def test_bfloat16_is_compared_as_a_device_rounds_it(tmp_path):
    """ONNX Runtime does not compute it on a processor, so there is nothing to serve it with here."""
    size = ["--size", 256, 256]
    result = m2f_export(
        CONFIG, CHECKPOINT, "--repository", tmp_path / "mine", *size, "--precision", "bf16", *compare_on(IMAGES)
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "mine" / "mask2former/export.json").read_text())
    assert [step["name"] for step in report["comparison"]["steps"]] == ["ONNX Runtime", "bf16"]
    assert "not compared through Triton" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--repository", "a", "--onnx", "b"]])
def test_one_target_is_needed(arguments):
    result = m2f_export(CONFIG, CHECKPOINT, *arguments)
    assert result.exit_code == 2
    assert "one of --repository and --onnx" in result.stderr


@pytest.mark.parametrize(
    ("size", "shapes", "expected"),
    [
        (None, None, ((1, 1, 8), (256, 256, 256), (256, 256, 256))),
        ((256, 256), None, ((1, 1, 8), None, None)),
        (None, ((1, 3, 320, 352), (2, 3, 800, 1344), (4, 3, 1344, 1376)),
         ((1, 2, 4), (320, 800, 1344), (352, 1344, 1376))),
        ((256, 256), ((1, 3, 256, 256), (2, 3, 256, 256), (4, 3, 256, 256)), ((1, 2, 4), None, None)),
    ],
)  # fmt: skip
def test_an_engine_is_built_for_the_sizes_that_are_stated(size, shapes, expected):
    from m2f_export.deploy_config import ShapeRange
    from m2f_export.pipeline import engine_profile

    preprocessing = Preprocessing(scale=(256, 256), pad_divisor=256, input_size=size)
    stated = ShapeRange(**dict(zip(("minimum", "optimum", "maximum"), shapes, strict=True))) if shapes else None
    profile = engine_profile(preprocessing, stated)
    assert (profile.batch, profile.height, profile.width) == expected


@pytest.mark.parametrize(
    ("scale", "usual", "longest"),
    [
        ((1333, 800), (800, 1344), 1344),
        ((2560, 640), (640, 2560), 2560),
        ((20_000, 256), (256, 512), 512),
        ((12_800, 800), (800, 1600), 1600),  # Resize(scale=(inf, 800))
    ],
)
def test_without_a_longest_edge_an_engine_is_built_and_warmed_up_for_a_usual_size(scale, usual, longest):
    from m2f_export.pipeline import engine_profile
    from m2f_export.repository_writer import warm_up_size

    preprocessing = Preprocessing(scale=scale)
    profile = engine_profile(preprocessing, None)
    assert warm_up_size(preprocessing) == (profile.height[1], profile.width[1]) == usual
    assert profile.height[2] == profile.width[2] == longest


@pytest.mark.more
def test_a_pure_python_configuration_is_served_with_the_options_it_states(tmp_path):
    """Classes for types, no longest edge, images as stored, padding that is no pixel, names under the older key."""
    config = pure_python_config(tmp_path, [
        "dict(type=LoadImageFromFile, color_type='color_ignore_orientation')",
        "dict(type=Resize, scale=(float('inf'), 128), keep_ratio=True)", "dict(type=PackDetInputs)",
    ], "model['data_preprocessor'].update(pad_value=114, pad_size_divisor=64)")  # fmt: skip
    target = tmp_path / "mine"
    result = m2f_export(config, CHECKPOINT, "--repository", target, "--json", *compare_on(IMAGES[:1]))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert "pads with 114.0, which is no pixel: the input is float32_chw" in result.stderr.replace("\n", " ")
    assert "pure.py states other class names than the checkpoint" in result.stderr.replace("\n", " ")
    assert report["class_names"] == ["a, b", "c", "d", "e", "f"]
    stated = report["preprocessing"]
    assert (stated["layout"], stated["float_pad_value"], stated["exif_orientation"]) == ("float32_chw", 114, False)
    assert [step["name"] for step in report["comparison"]["steps"]] == ["ONNX Runtime", "Triton"]
    warm_up = (target / "mask2former_engine/config.pbtxt").read_text()
    assert "dims: [ 3, 128, 256 ]" in warm_up


def test_a_head_needs_a_repository(tmp_path):
    result = m2f_export(CONFIG, CHECKPOINT, "--onnx", tmp_path / "model.onnx", "--head", "full")
    assert result.exit_code == 1
    assert "are for a repository" in result.stderr


def test_settings_without_a_deploy_config_keep_the_shipped_threshold(exported):
    assert exported[1]["settings"] == {**Settings().__dict__, "score_threshold": 0.5}
