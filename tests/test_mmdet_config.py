"""What a configuration says of classes, post-processing and data sets; and files that are no configuration."""

import contextlib
import json
import resource

import pytest
from exports import m2f_export
from hypothesis import given, settings
from json_mutations import mutated_json
from mmdet_configs import LOAD, PACK, PIPELINE, RESIZE, write_config
from sources import CHECKPOINT, CONFIG

from m2f.errors import InputError
from m2f.limits import MAX_INPUT_PIXELS
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_export.export_errors import ExportError
from m2f_export.repository_writer import preprocessing_parameters, step_parameters

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def describe():
    from m2f_export.sources.mmdetection import describe_mmdet

    return describe_mmdet


# --- classes


@pytest.mark.parametrize(
    ("metainfo", "classes", "names"),
    [
        ("dict(classes=('cat', 'dog'))", 2, ("cat", "dog")),
        ("dict(classes=['cat', 'dog'])", 2, ("cat", "dog")),
        ("dict(classes='rings')", 1, ("rings",)),
        ("dict(CLASSES=('cat', 'dog'))", 2, ("cat", "dog")),
        ("dict(CLASSES='rings')", 1, ("rings",)),
        ("dict(CLASSES=('cat', 'dog'), classes=['cat', 'dog'])", 2, ("cat", "dog")),
        ("dict(classes=('road, route', ' a = b '))", 2, ("road, route", " a = b ")),
        (
            "dict(classes=('cat', 'dog'), palette=[(1, 2, 3)] * 2, PALETTE=None, thing_classes=['cat'])",
            2,
            ("cat", "dog"),
        ),
        ("dict(classes=None)", 2, ()),
        ("dict()", 2, ()),
        ("None", 2, ()),
        (None, 2, ()),
    ],
)
def test_names_are_those_of_metainfo(describe, tmp_path, metainfo, classes, names):
    described = describe(write_config(tmp_path, metainfo=metainfo, head=f"num_things_classes={classes}"))
    assert (described.num_classes, described.facts.class_names) == (classes, names)


def test_names_may_stand_in_a_file(describe, tmp_path):
    """As mmengine reads a string in metainfo: a name in each line."""
    (tmp_path / "names.txt").write_text("cat\ntraffic light\n")
    config = write_config(tmp_path, metainfo=f"dict(classes={str(tmp_path / 'names.txt')!r})")
    assert describe(config).facts.class_names == ("cat", "traffic light")


@pytest.mark.parametrize(
    ("metainfo", "message"),
    [
        ("dict(classes='rings')", "classes is 'rings'; allowed: 2 names, one for each class of the model"),
        ("dict(classes=('a', 'b', 'c'))", r"classes is \('a', 'b', 'c'\); allowed: 2 names"),
        ("dict(CLASSES=())", r"CLASSES is \(\); allowed: 2 names"),
        ("dict(classes='ab')", "classes is 'ab'; allowed: 2 names"),
        ("dict(classes='names.txt')", "classes is 'names.txt'; allowed: 2 names, .* is looked for in the"),
        ("dict(classes='/dev/zero')", "classes is '/dev/zero'; allowed: 2 names"),
        ("dict(classes='\\0')", r"classes is .*; allowed: 2 names"),
        ("dict(classes=('a', 1))", r"classes is \('a', 1\); allowed: names, or a name"),
        ("dict(classes=('a', None))", r"classes is \('a', None\); allowed: names"),
        ("dict(classes={'a', 'b'})", "classes is .*; allowed: names"),
        ("dict(classes=dict(a=0, b=1))", "classes is .*; allowed: names"),
        ("dict(classes=2)", "classes is 2; allowed: names"),
        ("dict(classes=('a', '\\ud800'))", r"classes: the name of class 1 is"),
        ("dict(classes=('a', 'b'), CLASSES=('a', 'c'))", ": classes and CLASSES differ; allowed: one of them"),
        (
            "dict(classes=('a', 'b'), class_names=('a', 'c'))",
            "class_names is not an option .*allowed: classes, CLASSES",
        ),
        ("dict(Classes=('a', 'b'))", "Classes is not an option"),
        ("('a', 'b')", r" is \('a', 'b'\); allowed: a dict"),
        ("'names.json'", r" is 'names\.json'; allowed: a dict"),
    ],
)
def test_metainfo_that_cannot_be_meant_is_refused(describe, tmp_path, metainfo, message):
    with pytest.raises(ExportError, match=rf"c\.py: test_dataloader\.dataset\.metainfo\.?{message}"):
        describe(write_config(tmp_path, metainfo=metainfo))


def test_a_large_file_of_names_is_not_read(describe, tmp_path):
    with (tmp_path / "names.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ExportError, match=r"metainfo\.classes is .*; allowed: a file of at most 1048576 bytes"):
        describe(write_config(tmp_path, metainfo=f"dict(classes={str(tmp_path / 'names.txt')!r})"))


def test_a_file_of_names_that_is_no_text_is_refused(describe, tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ExportError, match=r"metainfo\.classes is .*; allowed: names, or a text file of names"):
        describe(write_config(tmp_path, metainfo=f"dict(classes={str(tmp_path / 'names.txt')!r})"))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("num_things_classes=None", "num_things_classes is None; allowed: a whole number from 0 to 10000"),
        ("num_things_classes='2'", "num_things_classes is '2'"),
        ("num_things_classes=-1", "num_things_classes is -1"),
        ("num_things_classes=2.0", r"num_things_classes is 2\.0"),
        ("num_things_classes=10**9", "num_things_classes is 1000000000"),
        ("num_things_classes=0", ": 0 things and 0 stuff classes; allowed: 1 to 10000 together"),
        ("num_queries=10**9", "num_queries is 1000000000; allowed: a whole number from 1 to 1000"),
        ("num_queries=0", "num_queries is 0"),
    ],
)
def test_counts_of_the_head_are_checked(describe, tmp_path, head, message):
    with pytest.raises(ExportError, match=rf"c\.py: model\.panoptic_head\.?{message}"):
        describe(write_config(tmp_path, head=head))


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("model['panoptic_head'] = None", r"model\.panoptic_head is None; allowed: a dict"),
        ("model.pop('panoptic_head')", r"model\.panoptic_head is None; allowed: a dict"),
        ("model['panoptic_fusion_head'] = [1]", r"model\.panoptic_fusion_head is \[1\]; allowed: a dict"),
        ("model['panoptic_fusion_head'] = dict(type='HeuristicFusionHead')",
         r"model\.panoptic_fusion_head\.type is 'HeuristicFusionHead'; allowed: 'MaskFormerFusionHead'"),
        ("test_dataloader = [test_dataloader]", r"test_dataloader is \[.*; allowed: a dict"),
        ("test_dataloader['dataset'] = 'coco'", r"test_dataloader\.dataset is 'coco'; allowed: a dict"),
        ("test_dataloader = None", r"test_dataloader\.dataset\.pipeline is \[\]; allowed: a list of steps, such as"),
    ],
)  # fmt: skip
def test_keys_of_another_type_are_refused(describe, tmp_path, after, message):
    with pytest.raises(ExportError, match=rf"c\.py: {message}"):
        describe(write_config(tmp_path, after=f"{after}\n"))


# --- post-processing


def test_test_cfg_becomes_the_settings(describe, tmp_path):
    stated = "dict(panoptic_on=True, instance_on=True, semantic_on=False, max_per_image=30, object_mask_thr=0.4, " \
             "iou_thr=1, filter_low_score=True)"  # fmt: skip
    assert describe(write_config(tmp_path, test_cfg=stated)).settings == Settings(
        pre_top_k=30, panoptic_score_threshold=0.4, panoptic_overlap_threshold=1, panoptic_filter_low_score=True
    )


@pytest.mark.parametrize("stated", ["None", "dict()"])
def test_without_a_test_cfg_the_defaults_are_the_fusion_heads(describe, tmp_path, stated):
    assert describe(write_config(tmp_path, test_cfg=stated)).settings == Settings(panoptic_filter_low_score=False)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        *((f"dict(max_per_image={value})", f"max_per_image is {value}; allowed: a whole number >= 1")
          for value in ("None", "-1", "0", "'100'", "2.0", "True", "{}")),
        *((f"dict({key}={value})", f"{key} is {value}; allowed: a number from 0 to 1")
          for key in ("iou_thr", "object_mask_thr") for value in ("None", "-0.1", "1.5", "'0.8'", "True")),
        ("dict(iou_thr=float('nan'))", "iou_thr is nan"),
        *((f"dict({key}={value})", f"{key} is {value}; allowed: true or false")
          for key in ("filter_low_score", "panoptic_on", "instance_on") for value in ("None", "1", "'no'")),
        *((f"dict(semantic_on={value})", f"semantic_on is {value}; allowed: False") for value in ("True", "None", "0")),
        *((f"dict({key}=0.5)", f"{key} is not an option that m2f export knows; allowed: max_per_image, object_mask_thr")
          for key in ("score_thr", "nms", "mask_thr_binary", "iou_threshold", "max_per_img")),
        ("[0.8]", r" is \[0\.8\]; allowed: a dict"), ("'default'", " is 'default'; allowed: a dict"),
    ],
)  # fmt: skip
def test_a_test_cfg_that_cannot_be_meant_is_refused(describe, tmp_path, stated, message):
    with pytest.raises(ExportError, match=rf"c\.py: model\.test_cfg\.?{message}"):
        describe(write_config(tmp_path, test_cfg=stated))


# --- data sets

LEAF = f"dict(type='BaseDetDataset', metainfo=dict(classes=('cat', 'dog')), pipeline={PIPELINE})"
OTHER = LEAF.replace("(96, 64)", "(96, 65)")
UNNAMED = LEAF.replace("'dog'", "'cow'")


@pytest.mark.parametrize(
    "dataset",
    [
        LEAF,
        f"dict(type='ConcatDataset', datasets=[{LEAF}])",
        f"dict(type='ConcatDataset', datasets=[{LEAF}, {LEAF}])",
        f"dict(type='RepeatDataset', times=2, dataset={LEAF})",
        f"dict(type='ClassBalancedDataset', oversample_thr=1e-3, dataset={LEAF})",
        f"dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=({LEAF}, {LEAF})))",
    ],
)
def test_pipelines_and_names_stand_in_wrapped_data_sets(describe, tmp_path, dataset):
    described = describe(write_config(tmp_path, dataset=dataset))
    assert described.preprocessing.scale == (96, 64)
    assert described.facts.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (f"dict(type='ConcatDataset', datasets=[{LEAF}, {OTHER}])", ": the data sets of test_dataloader differ"),
        (f"dict(type='ConcatDataset', datasets=[{LEAF}, {UNNAMED}])", ": the data sets of test_dataloader differ"),
        ("dict(type='ConcatDataset', datasets=[])", r"dataset\.datasets is \[\]; allowed: a list of data sets"),
        ("dict(type='ConcatDataset', datasets=3)", r"dataset\.datasets is 3; allowed: a list"),
        ("dict(type='RepeatDataset', dataset=None)", r"dataset\.dataset is None; allowed: a dict"),
        (f"dict(type='ConcatDataset', datasets=[{LEAF}, 'coco'])",
         r"dataset\.datasets\[1\] is 'coco'; allowed: a dict"),
        (f"dict(type='ConcatDataset', datasets=[{LEAF}, dict(pipeline=[{LOAD}, dict(type='Rotate'), {PACK}])])",
         r"dataset\.datasets\[1\]\.pipeline\[1\] is a step 'Rotate'"),
        (f"dict(type='MultiImageMixDataset', dataset={LEAF}, pipeline=[dict(type='Mosaic')])",
         r"dataset\.pipeline is of a data set that wraps others"),
    ],
)  # fmt: skip
def test_data_sets_that_are_prepared_differently_are_refused(describe, tmp_path, dataset, message):
    with pytest.raises(ExportError, match=rf"c\.py: .*{message.removeprefix(': ')}"):
        describe(write_config(tmp_path, dataset=dataset))


def test_test_time_augmentation_is_not_read(describe, tmp_path):
    """mmdetection uses these keys only if asked to."""
    after = "tta_model = dict(type='DetTTAModel')\ntta_pipeline = [dict(type='TestTimeAug', transforms=[])]"
    assert describe(write_config(tmp_path, after=after)).preprocessing.scale == (96, 64)


# --- files


def test_a_configuration_in_json_is_read(describe, tmp_path):
    path = tmp_path / "c.json"
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": [96, 64], "keep_ratio": True}]
    path.write_text(json.dumps({
        "model": {
            "type": "mmdet.Mask2Former", "panoptic_head": {"num_things_classes": 1, "num_stuff_classes": 1},
            "data_preprocessor": {"type": "DetDataPreprocessor", "bgr_to_rgb": True, "pad_size_divisor": 32},
        },
        "test_dataloader": {"dataset": {"pipeline": pipeline, "metainfo": {"classes": ["cat", "sky"]}}},
    }))  # fmt: skip
    described = describe(path)
    assert (described.preprocessing.scale, described.facts.class_names) == ((96, 64), ("cat", "sky"))
    assert described.facts.thing_classes == {0}


@pytest.mark.parametrize(
    "model_type",
    ["'Mask2Former'", "'mmdet.Mask2Former'", "'mmdet.models.detectors.mask2former.Mask2Former'", "Mask2Former"],
)
def test_the_model_may_be_named_or_be_the_class(describe, tmp_path, model_type):
    imported = "" if "'" in model_type else "from mmdet.models import Mask2Former"
    config = write_config(tmp_path, before=imported, after=f"model['type'] = {model_type}")
    assert describe(config).kind == "mmdetection Mask2Former (c)"


BASE = "_base_ = ['mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py']\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"c\.py is empty"),
        ("model = (", r"c\.py is not a configuration that mmengine can read: .*"),
        ("x = 1 / 0", r"c\.py is not a configuration .*division by zero"),
        ("import sys\nsys.exit(3)", r"c\.py is not a configuration .*it ends the program"),
        ("def f(): return f()\nf()", r"c\.py is not a configuration .*recursion"),
        ("x = 'é'".encode("latin-1"), r"c\.py is not a configuration .*utf-8"),
        (b"x = 1\0", r"c\.py is not a configuration .*null bytes"),
        ("_base_ = 'nothing.py'", r"c\.py is not a configuration .*nothing\.py"),
        ("_base_ = 'c.py'", r"c\.py is not a configuration .*recursion"),
        ("_base_ = 3", r"c\.py is not a configuration"),
        ("_base_ = 'nobody::c.py'", r"c\.py is not a configuration .*mmdet::"),
        (BASE + "model = 3", r"c\.py: its model has no 'type'"),
        (BASE + "model = dict(_delete_=True)", r"c\.py: its model has no 'type'; allowed: Mask2Former"),
        (BASE + "test_dataloader = dict(dataset=dict(_delete_=True, pipeline=[]))",
         r"dataset\.pipeline is \[\]; allowed: a list of steps"),
        ("custom_imports = dict(imports=['nobodys_module'])",
         r"Failed to import nobodys_module; a module of your own is found if PYTHONPATH has its folder"),
        ("custom_imports = 3", r"c\.py is not a configuration"),
        ("from nobodys_module import Mask2Former\nmodel = dict(type=Mask2Former)",
         r"No module named 'nobodys_module'.*PYTHONPATH"),
        ("from mmdet.models import Mask3Former\nmodel = dict(type=Mask3Former)", r"Failed to import Mask3Former"),
        ("x = 1", r"c\.py: it has no 'model'; allowed: Mask2Former"),
        (b"#" * (1 << 25), r"c\.py is larger than a configuration can be: 16777216 bytes"),
        ("model = dict(type='Mask2Former')\ndata = dict(test=dict(pipeline=[]))",
         r"c\.py is written for mmdetection 2"),
        ("model = None", r"c\.py: it has no 'model'"),
        ("model = 'Mask2Former'", r"c\.py: its model has no 'type'"),
        ("model = dict(type=None)", r"c\.py: its model is None; allowed: Mask2Former"),
        ("model = dict(type=['Mask2Former'])", r"c\.py: its model is \['Mask2Former'\]; allowed: Mask2Former"),
        ("model = dict(type='MaskRCNN')", r"c\.py: its model is 'MaskRCNN'; allowed: Mask2Former"),
        ("model = dict(type='mmseg.Mask2Former')", r"c\.py: its model is 'mmseg\.Mask2Former'; allowed"),
        ("from mmdet.models import MaskRCNN\nmodel = dict(type=MaskRCNN)", r"c\.py: its model is 'MaskRCNN'; allowed"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_named(describe, tmp_path, text, message):
    if isinstance(text, bytes):
        (tmp_path / "c.py").write_bytes(text)
    else:
        (tmp_path / "c.py").write_text(text)
    with pytest.raises(ExportError, match=message) as refused:
        describe(tmp_path / "c.py")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 800


# --- through the command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline": f"[dict(type='LoadImageFromFile', color_type='unchanged'), {RESIZE}, {PACK}]"},
         "dataset.pipeline[0].color_type is 'unchanged'; allowed: 'color' or 'color_ignore_orientation'"),
        ({"pipeline": f"[{LOAD}, dict(type='Resize', scale=(0, 800)), {PACK}]"},
         "pipeline[1].scale is (0, 800); allowed:"),
        ({"test_cfg": "dict(max_per_image=None)"}, "model.test_cfg.max_per_image is None; allowed: a whole number"),
        ({"pad_value": "'grey'"}, "model.data_preprocessor.pad_value is 'grey'; allowed: a number"),
        ({"metainfo": "dict(classes='rings')"}, "metainfo.classes is 'rings'; allowed: 2 names"),
        ({"before": "from nobodys_module import Mask2Former", "after": "model['type'] = Mask2Former"},
         "nobodys_module"),
        ({"after": "print('hello')\nraise SystemExit(7)"}, "it ends the program"),
    ],
)  # fmt: skip
def test_the_command_says_what_is_refused_in_one_message(tmp_path, options, message):
    config = write_config(tmp_path, **options)
    result = m2f_export(config, CHECKPOINT, "--onnx", tmp_path / "model.onnx", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"Error: {config}" in result.stderr
    assert message in result.stderr
    assert not (tmp_path / "model.onnx").exists()


# --- whatever a configuration holds

DOCUMENT_OF_SHAPES = {
    "test_pipeline": [{"type": "Resize", "scale": (256, 256), "keep_ratio": True}],
}

DOCUMENT = {
    "model": {
        "type": "Mask2Former",
        "data_preprocessor": {
            "type": "DetDataPreprocessor", "mean": [123.675, 116.28, 103.53], "std": [58.4, 57, 57], "bgr_to_rgb": True,
            "rgb_to_bgr": False, "pad_size_divisor": 32, "pad_value": 0, "pad_mask": True,
        },
        "panoptic_head": {"type": "Mask2FormerHead", "num_things_classes": 1, "num_stuff_classes": 1, "num_queries": 9},
        "panoptic_fusion_head": {"type": "MaskFormerFusionHead"},
        "test_cfg": {"max_per_image": 100, "iou_thr": 0.8, "object_mask_thr": 0.8, "filter_low_score": True,
                     "panoptic_on": True, "instance_on": True, "semantic_on": False},
    },
    "test_dataloader": {"dataset": {"type": "ConcatDataset", "datasets": [{
        "type": "CocoDataset",
        "metainfo": {"classes": ["cat", "sky"], "palette": [[1, 2, 3], [4, 5, 6]]},
        "pipeline": [
            {"type": "LoadImageFromFile", "to_float32": False, "color_type": "color", "backend_args": None},
            {"type": "Resize", "scale": [1333, 800], "keep_ratio": True, "interpolation": "bilinear", "backend": "cv2"},
            {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
            {"type": "PackDetInputs", "meta_keys": ["img_id", "ori_shape"]},
        ],
    }]}},
    "test_pipeline": [{"type": "mmdet.Resize", "scale": 800}],
}  # fmt: skip


def written_as_python(folder, document):
    path = folder / "c.py"
    names = "inf, nan = float('inf'), float('nan')\n"
    path.write_text(names + "".join(f"{key} = {value!r}\n" for key, value in document.items()))
    return path


def check_whatever_it_holds(read, path):
    """It is read, or refused in one message that names the file; what is read can be written and is bounded."""
    refusal = None
    try:
        source = read(path)
    except ExportError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(path) in refusal
        assert "\n" not in refusal
        assert len(refusal) < 1200
        return None
    written = preprocessing_parameters(source.preprocessing)
    stated = {key: value for key, value in written.items() if value is not None}
    assert Preprocessing.from_repository(stated) == source.preprocessing
    step_parameters(source)
    with contextlib.suppress(InputError):  # too large for the network
        height, width = source.preprocessing.input_size or source.preprocessing.target_size(800, 1333)
        assert height * width <= 4 * MAX_INPUT_PIXELS  # padded
    assert len(source.facts.class_names) in (0, source.num_classes)
    return source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all examples of a property."""
    return tmp_path_factory.mktemp("mutated")


@given(mutated_json(DOCUMENT))
@settings(max_examples=60)
def test_whatever_a_configuration_holds_it_is_read_or_refused(describe, folder, document):
    check_whatever_it_holds(describe, written_as_python(folder, document))


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@given(mutated_json(DOCUMENT))
@settings(max_examples=5000)
def test_whatever_a_configuration_holds_in_many_examples(describe, folder, document):
    check_whatever_it_holds(describe, written_as_python(folder, document))


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_whatever_the_model_of_a_configuration_holds_memory_is_bounded(folder):
    """The embedded model with one to three values of its network changed: built, loaded and run, or refused."""
    import torch

    from m2f_export.sources.mmdetection import load_mmdet, read_config

    model = json.loads(json.dumps(read_config(CONFIG).to_dict()["model"]))
    counts = {"refused": 0, "loaded": 0}

    def load(path):
        return load_mmdet(path, CHECKPOINT)

    @given(mutated_json(model))
    @settings(max_examples=400, database=None)
    def holds(changed):
        source = check_whatever_it_holds(load, written_as_python(folder, {**DOCUMENT_OF_SHAPES, "model": changed}))
        counts["loaded" if source else "refused"] += 1
        if source:
            with torch.inference_mode(), contextlib.suppress(Exception):  # the exporter reports it: `export_onnx`
                source.network(torch.zeros(1, 3, 64, 64))

    load(written_as_python(folder, {**DOCUMENT_OF_SHAPES, "model": model}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    holds()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(f"{counts}, {grown} MiB more at most")
    assert min(counts.values()) > 20
    assert grown < 1024
