"""`m2f doctor` on a repository with several exports and with models of other origin."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner

from m2f_cli.main import main
from m2f_export import repository_writer as writer
from m2f_export.doctor.diagnosis import diagnose
from m2f_export.export_errors import ExportError
from m2f_export.repository_place import REPORT

FOREIGN = """backend: "python"
max_batch_size: 0
input [ { name: "image" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "pixels" data_type: TYPE_UINT8 dims: [ -1 ] } ]
dynamic_batching { default_queue_policy { max_queue_size: 1 } }
response_cache { enable: true }
parameters { key: "scale" value { string_value: "half" } }
"""
ENSEMBLE = """platform: "ensemble"
input [ { name: "image" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "pixels" data_type: TYPE_UINT8 dims: [ -1 ] } ]
ensemble_scheduling { step [ {
  model_name: "decode" model_version: -1
  input_map { key: "image" value: "image" } output_map { key: "pixels" value: "pixels" }
}, {
  model_name: "show" model_version: -1
  input_map { key: "image" value: "pixels" } output_map { key: "pixels" value: "shown" }
} ] }
"""


@pytest.fixture
def repository(tmp_path):
    """Two exports without their graphs, one with a head, and models of other origin."""
    for name in ("parts", "left"):
        writer.copy_template(tmp_path, name)
        (tmp_path / name / REPORT).write_text("{}")
    writer.copy_head(tmp_path, "parts", masks="full")
    for name in ("resnet_engine", "decode", "show", "pictures"):
        (tmp_path / name / "1").mkdir(parents=True)
    (tmp_path / "resnet_engine/1/model.onnx").write_text("not looked at")  # Triton needs no configuration for it
    for name, text in {"decode": FOREIGN, "show": FOREIGN, "pictures": ENSEMBLE}.items():
        (tmp_path / name / "config.pbtxt").write_text(text)
        (tmp_path / name / "1/model.py").write_text("pass")
    return tmp_path


def findings(path, **options):
    return [f for f in diagnose(path, server_version="26.07", **options).findings if f.code != "triton-faults"]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_each_export_is_judged_and_foreign_models_are_left_alone(repository):
    found = findings(repository)
    assert {f.code for f in found} == {"engine-missing"}
    engines = {"parts_engine", "parts_head_engine", "left_engine"}
    assert {engine for f in found for engine in engines if f"/{engine}/" in f"{f.where}/"} == engines


def test_two_exports_need_not_agree_but_the_steps_of_one_must(repository):
    names = re.compile(r'(key: "class_names" value \{ string_value: )"[^\n]*" \} \}')
    for step in ("postprocess", "panoptic"):
        path = repository / f"left_{step}/config.pbtxt"
        path.write_text(names.sub(r'\1"[\\"cat\\"]" } }', path.read_text()))
    assert {f.code for f in findings(repository)} == {"engine-missing"}
    edit(repository / "left_panoptic/config.pbtxt", "cat", "dog")
    [differ] = [f for f in findings(repository) if f.code == "steps-differ"]
    assert "left_panoptic" in differ.what
    assert "parts" not in differ.what


@pytest.mark.parametrize("model", ["left", "left_tensor"])
def test_one_export_may_be_chosen(repository, model):
    edit(repository / "parts_postprocess/config.pbtxt", '"keep_top_k"', '"keep_topk"')
    edit(repository / "left_preprocess/config.pbtxt", "count: 2", "count: 1")
    assert {f.code for f in findings(repository)} == {"engine-missing", "parameter-unknown", "queue-policy"}
    assert {f.code for f in findings(repository, model="parts")} == {"engine-missing", "parameter-unknown"}
    assert {f.code for f in findings(repository, model=model)} == {"engine-missing", "queue-policy"}


def test_a_name_that_is_not_there(repository):
    result = CliRunner().invoke(main, ["doctor", str(repository), "--model", "pictures"])
    assert result.exit_code == 2
    assert (
        "has no export named pictures; there are: left, left_tensor, parts, parts_head, parts_tensor" in result.output
    )
    result = CliRunner().invoke(main, ["doctor", str(repository / "decode/1/model.py"), "--model", "parts"])
    assert result.exit_code == 2
    assert "a model is chosen in a repository, not in a deploy config" in result.output


def test_a_deploy_config_is_of_one_export(repository, deploy_config):
    with pytest.raises(ExportError, match=r"several exports: left, parts; --model says which one"):
        findings(repository, deploy_config=deploy_config)
    asked = json.loads(deploy_config.read_text())["codebase_config"]["post_processing"]
    [differ] = [
        f for f in findings(repository, model="left", deploy_config=deploy_config) if f.code == "settings-differ"
    ]
    assert "left_postprocess" in str(differ.where)
    assert "score_threshold" in differ.what
    assert asked["score_threshold"] != 0.5


def test_the_layout_before_exports_had_names(repository):
    for model in repository.iterdir():
        shutil.rmtree(model)
    writer.copy_template(repository, "mask2former")
    (repository / REPORT).write_text("{}")
    [old] = [f for f in findings(repository) if f.code == "old-layout"]
    assert old.level == "warning"
    assert f"m2f export with the same arguments and --repository {repository}" in old.fix


def test_a_configuration_that_nothing_stands_in_for(repository):
    (repository / "left/config.pbtxt").unlink()
    (repository / "parts_raw/config.pbtxt").unlink()
    missing = {str(f.where) for f in findings(repository) if f.code == "config-missing"}
    assert missing == {str(repository / "left"), str(repository / "parts_raw")}
