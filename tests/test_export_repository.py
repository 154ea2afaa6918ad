"""The models that an export writes: their names, and what is written into them."""

import json
from dataclasses import replace

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from m2f.contract import STEPS, models_of
from m2f.ensembles import read_ensemble
from m2f.model_facts import ModelFacts
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_backend.engine import LARGE
from m2f_export import repository_writer as repository
from m2f_export.export_errors import ExportError
from m2f_export.sources.base import Source

pytestmark = pytest.mark.torch

NAMES = ("cat", 'a "quoted" name', "back\\slash", "Straße, 猫")
OWN = Source(
    kind="test",
    network=None,
    preprocessing=Preprocessing(
        scale=(1333, 800), pad_divisor=32, pad_value=(124, 116, 104), mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    ),
    num_classes=4,
    facts=ModelFacts(class_names=NAMES, thing_classes=frozenset([0, 1, 3])),
    settings=Settings(score_threshold=0.8, iou_threshold=0.5, pre_top_k=5000, keep_top_k=100, classes="cat,3",
                      max_output_boxes_per_class=200, export_postprocess_mask=False, background_label_id=0,
                      panoptic_score_threshold=0.4, panoptic_overlap_threshold=0.6, panoptic_filter_low_score=False),
)  # fmt: skip
VARIANTS = {
    "pixels, free": OWN.preprocessing,
    "pixels, fixed": replace(OWN.preprocessing, input_size=(800, 1344)),
    "pixels, stretched": replace(OWN.preprocessing, keep_ratio=False, input_size=(384, 384)),
    "floats, free": replace(OWN.preprocessing, layout="float32_chw", pad_value=(0, 0, 0)),
    "huggingface": replace(OWN.preprocessing, size_rule="huggingface", resample="pillow_bilinear"),
}


@pytest.fixture(params=VARIANTS.values(), ids=list(VARIANTS))
def written(request, tmp_path):
    """A stage for one variant: its folder and the source."""
    source = replace(OWN, preprocessing=request.param)
    repository.copy_template(tmp_path, "parts")
    repository.copy_head(tmp_path, "parts", masks="full")
    repository.configure(tmp_path, "parts", source)
    return tmp_path, source


def read(path):
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def parameters(folder, model):
    return {key: value.string_value for key, value in read(folder / model / "config.pbtxt").parameters.items()}


def test_what_is_written_is_what_the_server_reads(written):
    folder, source = written
    assert Preprocessing.from_repository(parameters(folder, "parts_preprocess")) == source.preprocessing
    post, panoptic, semantic = (parameters(folder, f"parts_{s}") for s in ("postprocess", "panoptic", "semantic"))
    assert Settings.from_repository(panoptic | post) == source.settings
    assert not [key for key in post if key.startswith("panoptic_")]
    assert Settings.from_repository(semantic) == Settings(background_label_id=0)
    for step in (post, panoptic):
        assert tuple(json.loads(step["class_names"])) == NAMES
        assert ModelFacts.from_repository(step).thing_classes == {0, 1, 3}
    for step in (post, panoptic, semantic):
        assert step["mask_stride"] == "4"
        assert step["background_label_id"] == "0"


def test_where_nothing_says_what_is_stuff_all_are_things(tmp_path):
    repository.copy_template(tmp_path, "mask2former")
    repository.configure(tmp_path, "mask2former", replace(OWN, facts=ModelFacts(class_names=NAMES)))
    for step in ("mask2former_postprocess", "mask2former_panoptic"):
        assert ModelFacts.from_repository(parameters(tmp_path, step)).thing_classes is None


def test_every_statement_of_the_input_agrees(written):
    folder, source = written
    floats = source.preprocessing.layout == "float32_chw"
    height, width = source.preprocessing.input_size or (-1, -1)
    expected = ("TYPE_FP32", [3, height, width]) if floats else ("TYPE_UINT8", [height, width, 3])
    height, width = source.preprocessing.input_size or (800, 1344)
    files = [*folder.glob("*/config.pbtxt"), *folder.glob("*/configs/*.pbtxt")]
    stated, warm_ups = 0, 0
    for config in map(read, files):
        for tensor in (*config.input, *config.output):
            if tensor.name == "input":
                assert (model_config_pb2.DataType.Name(tensor.data_type), list(tensor.dims)) == expected
                stated += 1
        for warm_up in config.model_warmup:
            dims = list(warm_up.inputs["input"].dims)
            assert dims == ([3, height, width] if floats else [height, width, 3])
            assert model_config_pb2.DataType.Name(warm_up.inputs["input"].data_type) == expected[0]
            warm_ups += 1
    assert stated >= 8  # preprocess, three of the engine, the tensor ensemble, three of the head
    assert warm_ups >= 3


def test_the_template_is_copied_without_its_model(written):
    folder, _ = written
    assert not list(folder.rglob("*.onnx"))
    assert {path.name for path in folder.iterdir()} == set(models_of("parts", head=True))
    assert all(any(model.glob("[0-9]*")) for model in folder.iterdir())  # Triton wants a version of each


def test_a_folder_that_git_left_is_no_model(tmp_path, monkeypatch):
    """Of a model that is gone: git keeps the folder as long as Python's cache is in it."""
    (tmp_path / "template/mask2former_gone/1/__pycache__").mkdir(parents=True)
    monkeypatch.setattr(repository, "template", lambda: tmp_path / "template")
    repository.copy_template(tmp_path / "stage", "parts")
    assert not (tmp_path / "stage").exists()


def test_no_word_of_the_default_name_stays(written):
    folder, _ = written
    for path in folder.rglob("*.*"):
        if path.is_file():
            assert "mask2former" not in path.read_text(), path
    for model in folder.glob("*/config.pbtxt"):
        assert read(model).name == model.parent.name


def test_an_ensembles_steps_are_those_of_its_name(written):
    folder, _ = written
    found = read_ensemble(
        json_format.MessageToDict(read(folder / "parts/config.pbtxt"), preserving_proto_field_name=True)
    )
    assert found.public
    assert found.steps == tuple(f"parts_{step}" for step in STEPS)


def test_class_names_stand_one_a_line_beside_the_ensemble(written):
    folder, _ = written
    assert (folder / "parts/labels.txt").read_text(encoding="utf-8").splitlines() == list(NAMES)


def test_a_name_with_a_line_break_takes_one_line_and_no_names_make_no_file(tmp_path):
    for name, names in {"a": ("red\ncar ", "\tblue"), "b": ()}.items():
        repository.copy_template(tmp_path, name)
        repository.configure(tmp_path, name, replace(OWN, facts=ModelFacts(class_names=names)))
    assert (tmp_path / "a/labels.txt").read_text() == "red car\nblue\n"
    assert not (tmp_path / "b/labels.txt").exists()


@pytest.mark.parametrize("name", ["parts", "P", "parts-v1.2_b", "a" * 100])
def test_names(name):
    repository.check_name(name)


@pytest.mark.parametrize("name", ["", "1", "_a", ".a", "a b", "a/b", "../a", "ä", "a\n", "a$", "a" * 101])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ExportError, match=r"is no name for an export: a letter, then letters, digits"):
        repository.check_name(name)


@pytest.mark.parametrize(("size", "instances"), [(LARGE - 1, 2), (LARGE, 1)])
def test_a_large_graph_is_in_memory_once(tmp_path, size, instances):
    graph = repository.copy_template(tmp_path, "parts") / "model.onnx"
    with graph.open("wb") as file:
        file.truncate(size)
    repository.set_instances(tmp_path, "parts", graph)
    config = (tmp_path / "parts_engine/configs/cpu.pbtxt").read_text()
    (group,) = text_format.Parse(config, model_config_pb2.ModelConfig()).instance_group
    assert group.count == instances


def test_a_head_that_gives_logits_says_so(tmp_path):
    repository.copy_head(tmp_path, "mask2former", masks="stride4")
    configs = [read(path) for path in tmp_path.rglob("*.pbtxt")]
    kinds = [tensor.data_type for config in configs for tensor in config.output if tensor.name == "masks"]
    assert set(kinds) == {model_config_pb2.TYPE_FP32}


def test_comments_stay_and_go_with_their_parameters():
    config = '# head\nname: "x"\n\n# why a\nparameters { key: "a" value { string_value: "1" } }\n\n# why b\n' \
             'parameters { key: "b" value { string_value: "say \\"2\\"" } }\n'  # fmt: skip
    changed = repository.set_parameter(config, "a", "3")
    assert changed == config.replace('"1"', '"3"')
    assert repository.set_parameter(changed, "a", None) == config.replace(
        '\n# why a\nparameters { key: "a" value { string_value: "1" } }\n', ""
    )
    assert 'key: "b" value { string_value: "x" }' in repository.set_parameter(config, "b", "x")
    added = repository.set_parameter(config, "c", 'q"')
    assert added.endswith('\nparameters { key: "c" value { string_value: "q\\"" } }\n')
    assert repository.set_parameter(config, "c", None) == config
    close = config.replace("\n\n", "\n")  # without an empty line between two parameters
    assert repository.set_parameter(close, "b", None) == close[: close.index("# why b")]
