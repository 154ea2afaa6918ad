"""The repository that an export makes: what is written into it, and how it takes its place."""

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from m2f.model_facts import ModelFacts
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
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
    repository.copy_template(tmp_path)
    repository.copy_head(tmp_path, masks="full")
    repository.configure(tmp_path, source)
    return tmp_path, source


def read(path):
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def parameters(folder, model):
    return {key: value.string_value for key, value in read(folder / model / "config.pbtxt").parameters.items()}


def test_what_is_written_is_what_the_server_reads(written):
    folder, source = written
    assert Preprocessing.from_repository(parameters(folder, "mask2former_preprocess")) == source.preprocessing
    post, panoptic, semantic = (parameters(folder, f"mask2former_{s}") for s in ("postprocess", "panoptic", "semantic"))
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
    repository.copy_template(tmp_path)
    repository.configure(tmp_path, replace(OWN, facts=ModelFacts(class_names=NAMES)))
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
    assert {path.name for path in repository.template().iterdir()} <= {path.name for path in folder.iterdir()}
    assert all(any(model.glob("[0-9]*")) for model in folder.iterdir())  # Triton wants a version of each


def test_a_head_that_gives_logits_says_so(tmp_path):
    repository.copy_head(tmp_path, masks="stride4")
    configs = [read(path) for path in tmp_path.rglob("*.pbtxt")]
    kinds = [tensor.data_type for config in configs for tensor in config.output if tensor.name == "masks"]
    assert kinds == [model_config_pb2.TYPE_FP32] * 4


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


def test_a_link_stays_a_link(tmp_path):
    for content in ("1", "2"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("real")
        with repository.staged(tmp_path / "link") as stage:
            (stage / repository.REPORT).write_text(content)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / repository.REPORT).read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_it_appears_when_all_is_well_and_nothing_else_stays(tmp_path):
    target = tmp_path / "deep" / "mine"
    with repository.staged(target) as stage:
        (stage / repository.REPORT).write_text("{}")
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["mine"]


def test_an_export_is_replaced(tmp_path, monkeypatch):
    there, rmtree = [], shutil.rmtree

    def look_and_remove(folder, **options):
        there.append((tmp_path / "mine" / repository.REPORT).read_text())
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", look_and_remove)
    for text in ("1", "2"):
        with repository.staged(tmp_path / "mine") as stage:
            (stage / repository.REPORT).write_text(text)
            (stage / text).touch()
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["2", repository.REPORT]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert there[-2:] == ["2", "2"]  # the new one is in place before the old one is deleted


def test_a_failure_leaves_the_old_one(tmp_path):
    with repository.staged(tmp_path / "mine") as stage:
        (stage / repository.REPORT).write_text("1")

    def fail():
        with repository.staged(tmp_path / "mine") as stage:
            (stage / repository.REPORT).write_text("2")
            raise ExportError("drifts")

    with pytest.raises(ExportError, match="drifts"):
        fail()
    assert (tmp_path / "mine" / repository.REPORT).read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_stage_that_cannot_be_moved_leaves_the_old_one(tmp_path):
    with repository.staged(tmp_path / "mine") as stage:
        (stage / repository.REPORT).write_text("1")
    with pytest.raises(FileNotFoundError), repository.staged(tmp_path / "mine") as stage:
        stage.rmdir()
    assert (tmp_path / "mine" / repository.REPORT).read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["folder", "file"])
def test_what_is_not_an_export_is_never_replaced(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").touch()
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=rf"{name} exists and was not made by m2f export"):
        repository.staged(tmp_path / name).__enter__()
    assert (tmp_path / "folder" / "precious").exists()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file cannot be written to"):
        repository.staged(tmp_path / "file" / "mine").__enter__()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        os.geteuid()
        or not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "m2f", place], check=False).returncode
    ):
        pytest.skip("a tmpfs can be mounted by root only")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_the_old_one(small_disk):
    with repository.staged(small_disk / "mine") as stage:
        (stage / repository.REPORT).write_text("1")

    def fill():
        with repository.staged(small_disk / "mine") as stage:
            (stage / "model.onnx").write_bytes(bytes(2 << 20))

    with pytest.raises(ExportError, match=r"no space left in .*disk; .*mine is as it was"):
        fill()
    assert (small_disk / "mine" / repository.REPORT).read_text() == "1"
    assert [path.name for path in small_disk.iterdir()] == ["mine"]
