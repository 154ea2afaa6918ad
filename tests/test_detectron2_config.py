"""Configurations of detectron2: files, bases, and what no option allows."""

import pytest

from m2f_export.export_errors import ExportError
from m2f_export.sources import detectron2_options as options
from m2f_export.sources.detectron2_config import read_detectron2_config

pytestmark = pytest.mark.torch  # the exporter's extra has YAML

ARCHITECTURE = "MODEL:\n  META_ARCHITECTURE: MaskFormer\n"


@pytest.fixture
def write(tmp_path):
    """Write files into one folder; the path of the last one."""

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path / f"{name}.yaml"

    return write


def test_a_base_is_relative_to_its_file_and_the_file_has_priority(tmp_path, write):
    (tmp_path / "swin").mkdir()
    write(base="MODEL: {RESNETS: {DEPTH: 101, STRIDE_IN_1X1: false}, PIXEL_MEAN: [1, 2, 3]}\nINPUT: {FORMAT: RGB}")
    write(r50=f"_BASE_: base.yaml\n{ARCHITECTURE}  RESNETS: {{DEPTH: 50}}\n")
    (tmp_path / "swin/small.yaml").write_text("_BASE_: ../r50.yaml\nTEST: {DETECTIONS_PER_IMAGE: 7}\n")
    config = read_detectron2_config(tmp_path / "swin/small.yaml")
    assert config.values == {
        "MODEL": {
            "META_ARCHITECTURE": "MaskFormer", "PIXEL_MEAN": [1, 2, 3], "RESNETS": {"DEPTH": 50, "STRIDE_IN_1X1": False}
        },
        "INPUT": {"FORMAT": "RGB"},
        "TEST": {"DETECTIONS_PER_IMAGE": 7},
    }  # fmt: skip


def test_several_bases_are_merged_in_order(write):
    write(a="MODEL: {MASK_ON: 1, DEVICE: cpu}", b="MODEL: {MASK_ON: 2}")
    config = read_detectron2_config(write(c=f"_BASE_: [a.yaml, b.yaml]\n{ARCHITECTURE}"))
    assert config.values["MODEL"] == {"MASK_ON": 2, "DEVICE": "cpu", "META_ARCHITECTURE": "MaskFormer"}


def test_texts_are_literals_as_yacs_reads_them(write):
    text = f"""{ARCHITECTURE}
DATASETS: {{TRAIN: '("coco_2017_train",)', TEST: '()'}}
SOLVER: {{STEPS: !!python/tuple [1, 2], BASE_LR: 1e-4, OPTIMIZER: ADAMW, CLIP: "None"}}
"""
    values = read_detectron2_config(write(c=text)).values
    assert values["DATASETS"] == {"TRAIN": ("coco_2017_train",), "TEST": ()}
    assert values["SOLVER"] == {"STEPS": (1, 2), "BASE_LR": 1e-4, "OPTIMIZER": "ADAMW", "CLIP": None}


def test_the_code_of_a_tag_is_not_run(tmp_path, write):
    """`apply:eval` is in the official files, where it makes sizes of training."""
    run = f'!!python/object/apply:os.mkdir ["{tmp_path / "made"}"]'
    text = f"{ARCHITECTURE}INPUT:\n  MIN_SIZE_TRAIN: {run}\n  MIN_SIZE_TEST: !!python/object/apply:eval ['9']\n"
    config = read_detectron2_config(write(c=text))
    assert not (tmp_path / "made").exists()
    with pytest.raises(ExportError, match=r"c\.yaml: INPUT\.MIN_SIZE_TEST is None; allowed: a whole number from 0 to"):
        config.read("INPUT", options.INPUT, whole=False)


def test_an_option_that_is_not_stated_has_detectron2s_default(write):
    config = read_detectron2_config(write(c=f"{ARCHITECTURE}INPUT: {{CROP: {{ENABLED: true}}, MAX_SIZE_TEST: 99}}\n"))
    read = config.read("INPUT", options.INPUT, whole=False)
    assert (read["FORMAT"], read["MIN_SIZE_TEST"], read["MAX_SIZE_TEST"]) == ("BGR", 800, 99)
    assert config.read("MODEL.SWIN", options.SWIN_TRANSFORMER)["WINDOW_SIZE"] == 7


FAULTS = {
    "no yaml": ("a: [", r"c\.yaml is not YAML: "),
    "a list": ("- 1", r"c\.yaml is not a configuration: it holds \[1\]; allowed: keys"),
    "a section that is a number": ("MODEL: 3", r"c\.yaml: MODEL is 3; allowed: a mapping"),
    "an unknown tag": ("MODEL: !mine 3", r"c\.yaml is not YAML: could not determine a constructor"),
    "a circle": ("_BASE_: c.yaml", r"c\.yaml: its _BASE_ leads back to the file itself"),
    "a base that is gone": ("_BASE_: gone.yaml", r"c\.yaml: _BASE_: .*gone\.yaml: no such file"),
    "a base far away": ("_BASE_: https://a.b/c.yaml", r"_BASE_ is https://a\.b/c\.yaml: m2f downloads nothing"),
    "a number for a base": ("_BASE_: 3", r"_BASE_ is 3; allowed: the path of a file"),
    "aliases of aliases": (
        "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)),
        "has more than 100000 values, or aliases that make as many",
    ),
    "an alias of itself": ("a: &a [*a]", "is not YAML: |has more than"),
    "deep": ("a: " + "[" * 3000, r"c\.yaml is not YAML: "),
    "no architecture": ("MODEL: {}", r"has no MODEL\.META_ARCHITECTURE; allowed: 'MaskFormer'\. A base has none: give"),
    "video": ("MODEL: {META_ARCHITECTURE: VideoMaskFormer}", "'VideoMaskFormer'; allowed: 'MaskFormer'"),
    "per pixel": ("MODEL: {META_ARCHITECTURE: SemanticSegmentor}", "'SemanticSegmentor'; allowed: 'MaskFormer'"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_file_that_cannot_be_used_is_named(write, case):
    text, message = FAULTS[case]
    with pytest.raises(ExportError, match=message):
        read_detectron2_config(write(c=text))


@pytest.mark.parametrize(
    ("section", "table", "stated", "message"),
    [
        ("MODEL.BACKBONE", options.BACKBONE, "NAME: build_resnet_deeplab_backbone", "NAME is .build_resnet_deeplab"),
        ("MODEL.RESNETS", options.RESNETS, "NUM_GROUPS: 32", r"MODEL\.RESNETS\.NUM_GROUPS is 32; allowed: 1"),
        ("MODEL.RESNETS", options.RESNETS, "RES5_DILATION: 2", r"RES5_DILATION is 2; allowed: 1"),
        ("MODEL.RESNETS", options.RESNETS, "NORM: GN", r"RESNETS\.NORM is 'GN'; allowed: 'FrozenBN' or"),
        ("MODEL.RESNETS", options.RESNETS, "{}", r"OUT_FEATURES is \['res4'\]; allowed: \['res2', 'res3', 'res4', 're"),
        ("MODEL.SWIN", options.SWIN_TRANSFORMER, "APE: true", r"MODEL\.SWIN\.APE is True; allowed: False"),
        ("MODEL.SWIN", options.SWIN_TRANSFORMER, "MLP_RATIO: 3.5", r"MLP_RATIO is 3\.5; allowed: a whole number"),
        ("MODEL.SWIN", options.SWIN_TRANSFORMER, "DEPTHS: [2, 2]", r"DEPTHS is \[2, 2\]; allowed: four numbers"),
        ("MODEL.MASK_FORMER", options.MASK2FORMER_TRANSFORMER, "PRE_NORM: true", r"PRE_NORM is True; allowed: False"),
        ("MODEL.MASK_FORMER", options.MASK2FORMER_TRANSFORMER, "MINE: 1", r"MASK_FORMER\.MINE is not an option that"),
        ("MODEL.MASK_FORMER", options.MASK2FORMER_TRANSFORMER, "SIZE_DIVISIBILITY: 0", "allowed: a multiple"),
        ("MODEL.SEM_SEG_HEAD", options.MASK2FORMER_HEAD, "NAME: PerPixelBaselineHead", r"allowed: 'MaskFormerHead'"),
        ("TEST.AUG", options.TEST_AUG, "ENABLED: true", r"c\.yaml: TEST\.AUG\.ENABLED is True; allowed: False"),
    ],
)  # fmt: skip
def test_an_option_that_is_not_reproduced_is_named(write, section, table, stated, message):
    stated = stated if stated.startswith("{") else f"{{{stated}}}"
    *outer, last = section.split(".")
    text = f"{outer[0]}: {{META_ARCHITECTURE: MaskFormer, {last}: {stated}}}"
    if outer != ["MODEL"]:
        text = f"{ARCHITECTURE}\n{text}"
    config = read_detectron2_config(write(c=text))
    with pytest.raises(ExportError, match=message):
        config.read(section, table)
