"""Test pipelines and data preprocessors: the pixels are mmdetection's own, or the option is refused by file and key."""

import numpy as np
import pytest
from mmdet_configs import LOAD, PACK, PIPELINE, RESIZE, mmdetections_inputs, served, served_input, write_config
from pictures import encode, oriented, photo

from m2f.preprocess import LAYOUTS
from m2f_export.export_errors import ExportError

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

NOISE = np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8)
FILES = [encode(NOISE), encode(photo(211, 97), "jpg"), oriented(6, "jpg")]


def steps(*middle, load=LOAD, pack=PACK):
    return f"[{', '.join((load, *middle, pack))}]"


def loaded(options):
    return steps(RESIZE, load=f"dict(type='LoadImageFromFile', {options})")


def resized(options):
    return steps(f"dict(type='Resize', {options})")


GREY_LOAD = "dict(type='LoadImageFromFile', color_type='grayscale')"
GREY = {"pipeline": steps(RESIZE, load=GREY_LOAD), "bgr_to_rgb": None, "mean": "[118.5]", "std": "[57.5]"}

# Every option that changes an input, and types in every spelling
REPRODUCED = {
    "as usual": {},
    "as stored": {"pipeline": loaded("color_type='color_ignore_orientation'")},
    "floats": {"pipeline": loaded("to_float32=True")},
    "one number": {"pipeline": resized("scale=80, keep_ratio=True")},
    "portrait": {"pipeline": resized("scale=(64, 96), keep_ratio=True")},
    "whole floats": {"pipeline": resized("scale=(96.0, 64.0), keep_ratio=True")},
    "no longest edge": {"pipeline": resized("scale=(float('inf'), 64), keep_ratio=True")},
    "no longest edge, second": {"pipeline": resized("scale=(48, float('inf')), keep_ratio=True")},
    "longest edge of a million": {"pipeline": resized("scale=(10**6, 64), keep_ratio=True")},
    "longest edge out of reach": {"pipeline": resized("scale=(20000, 64), keep_ratio=True")},
    "stretched": {"pipeline": resized("scale=(96, 64)")},
    "stretched, then padded": {"pipeline": resized("scale=(90, 50), keep_ratio=False")},
    "stretched, then padded more": {"pipeline": resized("scale=(90, 50)"), "pad_size_divisor": "160"},
    "stretched, no padding": {"pipeline": resized("scale=(96, 64)"), "pad_size_divisor": None},
    "pillow": {"pipeline": resized("scale=(96, 64), keep_ratio=True, backend='pillow'")},
    "pillow, bicubic": {"pipeline": resized("scale=60, keep_ratio=True, backend='pillow', interpolation='bicubic'")},
    "no resize": {"pipeline": steps()},
    "no resize, floats": {"pipeline": steps(load="dict(type='LoadImageFromFile', to_float32=True)")},
    "two resizes": {"pipeline": steps(RESIZE, "dict(type='Resize', scale=(150, 40), keep_ratio=True)")},
    "two resizes, the second stretches": {"pipeline": steps(RESIZE, "dict(type='Resize', scale=(90, 50))")},
    "two resizes of floats": {
        "pipeline": steps(RESIZE, "dict(type='Resize', scale=(90, 50))",
                          load="dict(type='LoadImageFromFile', to_float32=True)"),
    },
    "two resizes, pillow and OpenCV": {
        "pipeline": steps("dict(type='Resize', scale=(96, 64), keep_ratio=True, backend='pillow')",
                          "dict(type='Resize', scale=(64, 32))"),
    },
    "a factor": {"pipeline": resized("scale_factor=0.5")},
    "a factor, ratio kept": {"pipeline": resized("scale_factor=0.7, keep_ratio=True")},
    "factors of width and height": {"pipeline": resized("scale_factor=(0.4, 0.8)")},
    "factors of width and height, ratio kept": {"pipeline": resized("scale_factor=(0.4, 0.8), keep_ratio=True")},
    "scale before factor": {"pipeline": resized("scale=(96, 64), scale_factor=3.0")},
    "FixScaleResize": {"pipeline": steps("dict(type='FixScaleResize', scale=(99, 65), keep_ratio=True)")},
    "FixScaleResize, pillow": {
        "pipeline": steps("dict(type='mmdet.FixScaleResize', scale=(99, 65), keep_ratio=True, backend='pillow')"),
    },
    "FixScaleResize, stretched": {"pipeline": steps("dict(type='FixScaleResize', scale=(99, 65))")},
    "ResizeShortestEdge": {"pipeline": steps("dict(type='ResizeShortestEdge', scale=64, max_size=100)")},
    "ResizeShortestEdge, no longest": {"pipeline": steps("dict(type='ResizeShortestEdge', scale=(64, 99))")},
    "ResizeShortestEdge, longest below": {"pipeline": steps("dict(type='ResizeShortestEdge', scale=64, max_size=50)")},
    "padded to a size": {"pipeline": steps(RESIZE, "dict(type='Pad', size=(96, 128))"), "pad_size_divisor": None},
    "padded less than the image": {"pipeline": steps(RESIZE, "dict(type='Pad', size=(70, 64))")},
    "padded to multiples": {"pipeline": steps(RESIZE, "dict(type='Pad', size_divisor=32)"), "pad_size_divisor": None},
    "padded to multiples of ten": {"pipeline": steps(RESIZE, "dict(type='Pad', size_divisor=10, pad_val=255)")},
    "padded to a square": {"pipeline": steps(RESIZE, "dict(type='mmcv.Pad', pad_to_square=True, pad_val=114)")},
    "padded to a square of multiples": {
        "pipeline": steps(RESIZE, "dict(type='Pad', pad_to_square=True, size_divisor=64)"), "pad_size_divisor": "1",
    },
    "padded with a colour": {
        "pipeline": steps(RESIZE, "dict(type='Pad', size=(100, 100), pad_val=dict(img=(3, 100, 250), masks=0, seg=9))"),
    },
    "padded floats": {
        "pipeline": steps(RESIZE, "dict(type='Pad', size=(100, 100), pad_val=dict(img=(3, 100, 250)))",
                          load="dict(type='LoadImageFromFile', to_float32=True)"),
    },
    "padded, then resized": {"pipeline": steps("dict(type='Pad', pad_to_square=True, pad_val=dict(img=114))", RESIZE)},
    "padded alone": {"pipeline": steps("dict(type='Pad', size_divisor=32)"), "pad_size_divisor": None},
    "padded BGR": {
        "pipeline": steps(RESIZE, "dict(type='Pad', size=(100, 100), pad_val=dict(img=(3, 100, 250)))"),
        "bgr_to_rgb": None, "mean": "[1, 2, 3]", "std": "[4, 5, 6]",
    },
    "grey": GREY,
    "grey as stored": {**GREY, "pipeline": loaded("color_type='grayscale_ignore_orientation'")},
    "grey floats": {**GREY, "pipeline": loaded("color_type='grayscale', to_float32=True")},
    "grey, not normalised": {**GREY, "mean": None, "std": None},
    "grey, pillow": {**GREY, "pipeline": steps("dict(type='Resize', scale=64, keep_ratio=True, backend='pillow')",
                                               load=GREY_LOAD)},
    "grey, padded": {**GREY, "pipeline": steps(RESIZE, "dict(type='Pad', size=(99, 99), pad_val=7)", load=GREY_LOAD)},
    "grey padding that is no pixel": {**GREY, "pad_value": "114"},
    "annotations": {"pipeline": steps("dict(type='LoadAnnotations', with_bbox=True)", RESIZE)},
    "meta keys": {"pipeline": steps(RESIZE, pack="dict(type='PackDetInputs', meta_keys=('img_id', 'img_shape'))")},
    "no effect": {
        "pipeline": steps("dict(type='Resize', scale=64, keep_ratio=True, clip_object_border=False)",
                          load="dict(type='LoadImageFromFile', ignore_empty=True, backend_args=dict(backend='local'))"),
        "pad_mask": "True", "mask_pad_value": "3", "pad_seg": "True", "seg_pad_value": "7", "boxtype2tensor": "False",
        "non_blocking": "True",
        "batch_augments": "[dict(type='BatchFixedSizePad', size=(640, 640), img_pad_value=9, pad_mask=True)]",
    },
    "scoped": {"pipeline": steps("dict(type='mmdet.Resize', scale=64, keep_ratio=True)",
                                 pack="dict(type='mmdet.PackDetInputs')")},
    "mmcv's": {"pipeline": steps("dict(type='mmcv.Resize', scale=64, keep_ratio=True)",
                                 load="dict(type='mmcv.LoadImageFromFile')")},
    "import paths": {"pipeline": steps("dict(type='mmdet.datasets.transforms.Resize', scale=64, keep_ratio=True)",
                                       load="dict(type='mmcv.transforms.LoadImageFromFile')")},
    "classes": {
        "before": "from mmcv.transforms import LoadImageFromFile\nfrom mmdet.datasets import BaseDetDataset\n"
                  "from mmdet.datasets.transforms import PackDetInputs, Resize\n"
                  "from mmdet.models import DetDataPreprocessor\n",
        "pipeline": steps("dict(type=Resize, scale=64, keep_ratio=True)", load="dict(type=LoadImageFromFile)",
                          pack="dict(type=PackDetInputs)"),
        "type": "DetDataPreprocessor",
    },
    "padding": {"pad_value": "-1"},
    "padding of a half": {"pad_value": "0.5"},
    "padding that is no pixel": {"pad_value": "114"},
    "padding below every pixel": {"pad_value": "-2.5"},
    "padding between pixels": {"pad_value": "1", "mean": "[123.675, 116.28, 103.53]", "std": "[58.395, 57.12, 57.375]"},
    "padding of pixels": {"mean": None, "std": None, "pad_value": "114"},
    "mean above white": {"mean": "[300]", "std": "[2.5]"},
    "divisor": {"pad_size_divisor": "96"},
    "not normalised": {"mean": None, "std": None},
    "one mean": {"mean": "[120.5]", "std": "(57.5,)"},
    "one mean, three std": {"mean": "[120]"},
    "BGR": {"bgr_to_rgb": None, "mean": "[1, 2, 3]", "std": "[4, 5, 6]"},
    "swapped by the other name": {"bgr_to_rgb": "False", "rgb_to_bgr": "True", "std": "[4.5, 5, -6]"},
    "ImageNet's": {"mean": "[123.675, 116.28, 103.53]", "std": "[58.395, 57.12, 57.375]"},
}  # fmt: skip


@pytest.mark.parametrize("options", REPRODUCED.values(), ids=list(REPRODUCED))
def test_the_input_is_mmdetections_own(options, tmp_path):
    config = write_config(tmp_path, **options)
    taken = [served(config, layout) for layout in LAYOUTS]
    for data, (theirs, their_shape) in zip(FILES, mmdetections_inputs(config, FILES), strict=True):
        height, width = their_shape
        for preprocessing, takes_bgr in taken:
            ours, shape = served_input(preprocessing, takes_bgr, data)
            assert (shape, ours.shape) == (their_shape, theirs.shape)
            of_image, of_padding = tolerance(preprocessing)
            np.testing.assert_allclose(ours[..., :height, :width], theirs[..., :height, :width], rtol=0, atol=of_image)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=max(of_image, of_padding))


def tolerance(preprocessing):
    """What an input may differ by: in the image, and in the padding."""
    if preprocessing.layout == "float32_chw":
        return 1e-6, 1e-6
    level = (1 + len(preprocessing.then)) / np.abs(preprocessing.std).min()
    rounded_mean = any(mean % 1 for mean in preprocessing.mean)
    return level if preprocessing.float_resize else 0, level / 2 if rounded_mean else 0


@pytest.mark.parametrize(("name", "layout"), [
    ("as usual", "uint8_hwc"), ("padding", "uint8_hwc"), ("padding of pixels", "uint8_hwc"),
    ("padding of a half", "float32_chw"), ("padding that is no pixel", "float32_chw"),
    ("padding below every pixel", "float32_chw"), ("padding between pixels", "float32_chw"),
    ("mean above white", "float32_chw"),
])  # fmt: skip
def test_only_padding_that_is_no_pixel_needs_floats(name, layout, tmp_path):
    assert served(write_config(tmp_path, **REPRODUCED[name]), "uint8_hwc")[0].layout == layout


REFUSED = [
    # steps
    ({"pipeline": steps("dict(type='Rotate')", RESIZE)}, r"pipeline\[1\] is a step 'Rotate'; allowed: Load"),
    *(({"pipeline": steps(f"dict(type={name!r}, scales=[(8, 8)])")},
       rf"pipeline\[1\] is a step '{name}', which changes images at random: no result could be repeated; allowed: Load")
      for name in ("RandomChoiceResize", "RandomResize", "RandomFlip", "mmdet.RandomCrop")),
    ({"pipeline": steps(RESIZE, "dict(type='TestTimeAug', transforms=[])")}, r"pipeline\[2\] is a step 'TestTimeAug'"),
    ({"pipeline": steps(RESIZE, "dict(type='nobody.Resize', scale=8)")}, r"a step 'nobody\.Resize'"),
    ({"pipeline": steps(RESIZE, "dict(type='os.system')")}, r"a step 'os\.system'"),
    ({"pipeline": steps(RESIZE, "dict(scale=8)")}, r"pipeline\[2\] is a step None"),
    ({"pipeline": steps(RESIZE, "'Pad'")}, r"pipeline\[2\] is a step 'Pad'; allowed: Load"),
    ({"pipeline": steps(RESIZE, "dict(type=3)")}, r"pipeline\[2\] is a step 3"),
    ({"pipeline": "'Resize'"}, r"test_dataloader\.dataset\.pipeline is 'Resize'; allowed: a list of steps"),
    ({"pipeline": steps(RESIZE, LOAD)}, "LoadImageFromFile is not the first step; allowed: there, once"),
    ({"pipeline": f"[{LOAD}, {PACK}, {RESIZE}]"}, "PackDetInputs is not the last step"),
    ({"before": "from mmdet.datasets.transforms import RandomFlip", "pipeline": steps("dict(type=RandomFlip, prob=0)")},
     r"pipeline\[1\] is a step 'RandomFlip', which changes images at random"),
    ({"pipeline": steps("dict(type='Resize')")}, r"pipeline\[1\] has neither scale nor scale_factor; allowed: one of"),
    *(({"pipeline": steps(RESIZE, f"dict(type='Pad', {options})")}, rf"pipeline\[2\]{message}")
      for options, message in (
          ("", ": size None, size_divisor None, pad_to_square False; allowed: a size, or the others"),
          ("size=(64, 64), size_divisor=32", r": size \(64, 64\), size_divisor 32"),
          ("size=(64, 64), pad_to_square=True", ": size .* pad_to_square True"),
          ("size=64", r"\.size is 64; allowed: None, or width and height"), ("size=(0, 64)", r"\.size is"),
          ("size=(10**5, 10**5)", r"\.size is .* at most 16777216 pixels"), ("size=(64.0, 64)", r"\.size is"),
          ("size_divisor=0", r"\.size_divisor is 0; allowed: None, or a whole number from 1 to 4096"),
          ("size_divisor=32.0", r"\.size_divisor is"), ("pad_to_square=1", r"\.pad_to_square is 1"),
          ("size_divisor=32, pad_val=-1", r"\.pad_val is -1; allowed: a whole number from 0 to 255"),
          ("size_divisor=32, pad_val=256", r"\.pad_val is"), ("size_divisor=32, pad_val=0.5", r"\.pad_val is"),
          ("size_divisor=32, pad_val=(1, 2, 3)", r"\.pad_val is"),
          ("size_divisor=32, pad_val=dict(img=(1, 2))", r"\.pad_val is"),
          ("size_divisor=32, padding_mode='edge'", r"\.padding_mode is 'edge'; allowed: 'constant'"),
          ("size_divisor=32, center_pad=True", r"\.center_pad is not an option"))),
    *(({"pipeline": steps(f"dict(type='ResizeShortestEdge', {options})")}, rf"pipeline\[1\]\.{message}")
      for options, message in (
          ("scale=None", "scale is None; allowed: a whole number"), ("scale=64, max_size=0", "max_size is 0"),
          ("scale=64, keep_ratio=True", "keep_ratio is True; allowed: False"),
          ("scale=64, resize_type='FixScaleResize'", "resize_type is 'FixScaleResize'; allowed: 'Resize'"))),
    ({**GREY, "bgr_to_rgb": "True"}, r"bgr_to_rgb is True; allowed: False, for the pipeline loads grey images"),
    ({**GREY, "rgb_to_bgr": "True"}, r"rgb_to_bgr is True; allowed: False"),
    ({**GREY, "mean": "[1, 2, 3]"}, r"mean is .* allowed: one number in a list, for the pipeline loads grey images"),
    ({**GREY, "std": "[1, 2, 3]"}, r"std is .* allowed: one number in a list"),
    ({**GREY, "pipeline": steps("dict(type='Pad', size_divisor=32, pad_val=dict(img=(1, 2, 3)))", load=GREY_LOAD)},
     r"pad_val is .* allowed: one number, for the images are grey"),
    # their options
    *(({"pipeline": loaded(f"{option}={value!r}")},
       rf"pipeline\[0\]\.{option} is {value!r}; allowed: {allowed}")
      for option, value, allowed in (
          ("color_type", "unchanged", "'color' or 'color_ignore_orientation' or 'grayscale'"),
          ("color_type", None, "'color'"), ("color_type", 1, "'color'"), ("imdecode_backend", "pillow", "'cv2'"),
          ("imdecode_backend", "turbojpeg", "'cv2'"), ("to_float32", 1, "true or false"))),
    ({"pipeline": loaded("colour='x'")},
     r"pipeline\[0\]\.colour is not an option that m2f export knows; allowed: color_type"),
    *(({"pipeline": resized(options)}, rf"pipeline\[1\]\.{message}") for options, message in (
        ("scale_factor=0", "scale_factor is 0; allowed: None, or a number from 0.001 to 1000, or two"),
        ("scale_factor=(1, 2, 3)", "scale_factor is"), ("scale_factor=float('nan')", "scale_factor is"),
        ("scale_factor=(1.0, float('inf'))", "scale_factor is"), ("scale_factor='2'", "scale_factor is"),
        ("scale=True", "scale is True; allowed: None, or a whole number >= 1, or two"),
        ("scale=0.5, keep_ratio=True", r"scale is 0\.5"), ("scale=0", "scale is 0"), ("scale=-5", "scale is -5"),
        ("scale='64'", "scale is '64'"), ("scale=(64,)", "scale is"), ("scale=(1, 2, 3)", "scale is"),
        ("scale=(64, 0)", "scale is"), ("scale=(64, -1)", "scale is"), ("scale=(64.5, 64)", "scale is"),
        ("scale=(64, None)", "scale is"), ("scale=(64, '64')", "scale is"), ("scale=(float('nan'), 64)", "scale is"),
        ("scale=(float('inf'), float('inf')), keep_ratio=True", "scale is"), ("scale=float('inf')", "scale is"),
        ("scale=(float('inf'), 64)", "scale is .* at most 16777216 pixels, for keep_ratio is False"),
        ("scale=(10**5, 10**5)", "scale is .* at most"), ("scale=10**9, keep_ratio=True", "scale is .* at most"),
        ("scale=64, keep_ratio=1", "keep_ratio is 1; allowed: true or false"),
        ("scale=64, backend='tifffile'", "backend is 'tifffile'; allowed: 'cv2' or 'pillow'"),
        ("scale=64, interpolation='nearest'", "interpolation is 'nearest'; allowed: 'bilinear' for the backend 'cv2'"),
        ("scale=64, backend='pillow', interpolation='box'", "interpolation is 'box'; allowed: 'bilinear' or 'bicubic'"),
        ("scale=64, interpolation=None", "interpolation is None"),
        ("scale=64, antialias=True", "antialias is not an option"), ("scale=64, _scope_='mmpretrain'", "_scope_ is"))),
    ({"pipeline": steps("dict(type='Resize', scale=64, backend='pillow')",
                        load="dict(type='LoadImageFromFile', to_float32=True)")},
     r"pipeline\[1\]\.backend is 'pillow'; allowed: 'cv2', for LoadImageFromFile has to_float32"),
    ({"pipeline": steps(RESIZE, pack="dict(type='PackDetInputs', meta=1)")}, r"pipeline\[2\]\.meta is not an option"),
    ({"pipeline": steps("dict(type='LoadAnnotations', with_box=True)", RESIZE)},
     r"pipeline\[1\]\.with_box is not an option"),
    # the data preprocessor
    *((options, rf"model\.data_preprocessor\.{message}") for options, message in (
        ({"mean": "None"}, "mean is None; allowed: numbers, for the other of mean and std"),
        ({"std": None}, "std is None"),
        ({"mean": "[1, 2]"}, "mean is .* allowed: one number, or three in a list, or None"),
        ({"mean": "[1, 2, 3, 4]"}, "mean is"), ({"mean": "[]"}, "mean is"), ({"mean": "124"}, "mean is 124"),
        ({"mean": "'124'"}, "mean is"), ({"mean": "['1', 2, 3]"}, "mean is"), ({"mean": "[None] * 3"}, "mean is"),
        ({"mean": "[float('nan'), 1, 1]"}, "mean is"), ({"mean": "[10**400, 1, 1]"}, "mean is"),
        ({"std": "[58, 0, 57]"}, "std is .* other than 0"), ({"std": "[float('inf')]"}, "std is"),
        ({"pad_value": "None"}, "pad_value is None; allowed: a number"), ({"pad_value": "[0, 0, 0]"}, "pad_value is"),
        ({"pad_value": "True"}, "pad_value is True"), ({"pad_value": "float('inf')"}, "pad_value is inf"),
        ({"pad_size_divisor": "0"}, "pad_size_divisor is 0; allowed: a whole number from 1 to 4096"),
        ({"pad_size_divisor": "-32"}, "pad_size_divisor is -32"),
        ({"pad_size_divisor": "32.0"}, r"pad_size_divisor is 32\.0"),
        ({"pad_size_divisor": "None"}, "pad_size_divisor is None"),
        ({"pad_size_divisor": "10**9"}, "pad_size_divisor is"),
        ({"bgr_to_rgb": "1"}, "bgr_to_rgb is 1; allowed: true or false"),
        ({"rgb_to_bgr": "'no'"}, "rgb_to_bgr is 'no'"),
        ({"to_rgb": "True"}, "to_rgb is not an option that m2f export knows; allowed: mean, std, bgr_to_rgb"),
        ({"size": "(64, 64)"}, "size is not an option"),
        ({"type": "'ImgDataPreprocessor'"}, "type is 'ImgDataPreprocessor'; allowed: 'DetDataPreprocessor'"),
        ({"type": "'mmdet.TrackDataPreprocessor'"}, r"type is 'mmdet\.TrackDataPreprocessor'"),
        ({"type": "None"}, "type is None"))),
    ({"rgb_to_bgr": "True"}, r"data_preprocessor: bgr_to_rgb and rgb_to_bgr are both True; allowed: one"),
    *(({"after": f"model['data_preprocessor'] = {value}"}, rf"model\.data_preprocessor is {value}; allowed: a dict")
      for value in ("None", "3", "'DetDataPreprocessor'")),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_reproduced_is_refused_by_file_and_key(options, message, tmp_path):
    from m2f_export.sources.mmdetection import describe_mmdet

    with pytest.raises(ExportError, match=rf"c\.py: .*{message}"):
        describe_mmdet(write_config(tmp_path, **options))


@pytest.mark.parametrize(("options", "size", "divisor", "note"), [
    ({"pad_size_divisor": None}, None, 32, "does not pad images; the server pads them to multiples of 32"),
    ({"pad_size_divisor": "48"}, None, 96, "pads images to multiples of 48; the server pads them to multiples of 96"),
    ({"pad_size_divisor": "64"}, None, 64, None),
    ({"pad_size_divisor": "1", "pipeline": resized("scale=(90, 50)")}, (64, 96), 32, "does not pad images; the server"),
    ({"pad_size_divisor": "48", "pipeline": resized("scale=(90, 50)")}, (96, 96), 96, None),
])  # fmt: skip
def test_images_are_padded_to_multiples_of_32(options, size, divisor, note, tmp_path):
    from m2f_export.sources.mmdetection import describe_mmdet

    source = describe_mmdet(write_config(tmp_path, **options))
    assert (source.preprocessing.input_size, source.preprocessing.pad_divisor) == (size, divisor)
    assert [note in said for said in source.notes] == [True] * (note is not None)


@pytest.mark.parametrize(("middle", "size"), [
    (["dict(type='Resize', scale=(96, 64))"], (64, 96)),
    ([RESIZE, "dict(type='Pad', size=(96, 128))"], (128, 96)),
    ([RESIZE, "dict(type='Pad', size=(96, 64))"], None),  # a portrait is higher
    ([RESIZE, "dict(type='Pad', size=(100, 100))", "dict(type='Pad', size_divisor=64)"], (128, 128)),
    (["dict(type='Resize', scale=(96, 64))", "dict(type='Pad', pad_to_square=True)"], (96, 96)),
    (["dict(type='Resize', scale=(96, 64))", RESIZE], None),
    (["dict(type='Pad', size=(96, 96))"], None),
    (["dict(type='Resize', scale_factor=(0.5, 0.25))"], None),
    ([], None),
])  # fmt: skip
def test_the_input_is_fixed_where_every_image_becomes_as_large(middle, size, tmp_path):
    assert served(write_config(tmp_path, pipeline=steps(*middle)), "uint8_hwc")[0].input_size == size


def test_an_input_without_a_longest_edge_is_bounded(tmp_path):
    """One image must not take the memory of many: 16:1 has the pixels of 8 images of 2:1."""
    from m2f_export.sources.mmdetection import describe_mmdet

    def scale(stated):
        config = write_config(tmp_path, pipeline=resized(f"scale={stated}, keep_ratio=True"))
        return describe_mmdet(config).preprocessing.scale

    assert scale("(float('inf'), 800)") == scale("(800, 10**9)") == (12_800, 800)
    assert scale("(float('inf'), 4096)") == (4096, 4096)
    assert scale("(20000, 256)") == (20_000, 256)


def test_the_pipeline_of_the_file_counts_if_the_data_set_has_none(tmp_path):
    from m2f_export.sources.mmdetection import describe_mmdet

    config = write_config(tmp_path, dataset="dict(type='BaseDetDataset')", after=f"test_pipeline = {PIPELINE}")
    assert describe_mmdet(config).preprocessing.scale == (96, 64)
    config.write_text(config.read_text().replace("scale=(96, 64)", "scale=0"))
    with pytest.raises(ExportError, match=r"c\.py: test_pipeline\[1\]\.scale is 0"):
        describe_mmdet(config)


def test_the_preprocessor_of_the_file_counts_if_the_model_has_none(tmp_path):
    """As mmengine's runner has it."""
    from m2f_export.sources.mmdetection import describe_mmdet

    config = write_config(tmp_path, after="data_preprocessor = model.pop('data_preprocessor')\n")
    assert describe_mmdet(config).preprocessing.mean == (124, 116, 104)
    config.write_text(config.read_text() + "data_preprocessor['pad_value'] = None\n")
    with pytest.raises(ExportError, match=r"c\.py: data_preprocessor\.pad_value is None"):
        describe_mmdet(config)
