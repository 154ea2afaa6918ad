import numpy as np
import pytest
from pictures import encode, photo
from PIL import Image

from m2f.contract import InputError
from m2f.preprocess import Preprocessing

SHAPES = Preprocessing(scale=(256, 256), input_size=(256, 256), pad_value=(124, 116, 104))
COCO = Preprocessing(scale=(1333, 800), pad_divisor=32)

SIZES = [(1, 1), (2, 900), (900, 2), (100, 100), (256, 256), (257, 131), (480, 640), (333, 500), (1080, 1920)]


@pytest.mark.parametrize("size", SIZES)
def test_the_image_is_top_left_and_the_rest_is_padding(size):
    batch, img_shape, ori_shape = SHAPES([encode(photo(*size))])
    height, width = img_shape[0]
    assert batch.shape == (1, 256, 256, 3)
    assert batch.dtype == np.uint8
    assert ori_shape.tolist() == [list(size)]
    assert max(height, width) == 256
    assert (batch[0, height:] == (124, 116, 104)).all()
    assert (batch[0, :, width:] == (124, 116, 104)).all()


def test_several_images_share_an_input_as_large_as_the_largest():
    batch, img_shape, ori_shape = COCO([encode(photo(100, 300)), encode(photo(300, 100))])
    assert batch.shape == (2, 1344, 1344, 3)
    assert img_shape.tolist() == [[444, 1333], [1333, 444]]
    assert ori_shape.tolist() == [[100, 300], [300, 100]]


def test_a_fixed_input_smaller_than_the_scale_still_holds_the_image():
    portrait = Preprocessing(scale=(1333, 800), input_size=(800, 1344))
    assert portrait.target_size(1333, 800) == (800, 480)
    assert portrait.target_size(800, 1333) == (800, 1333)


def test_stretching_fills_the_input():
    stretched = Preprocessing(scale=(64, 32), keep_ratio=False, input_size=(32, 64))
    batch, img_shape, _ = stretched([encode(photo(50, 50))])
    assert batch.shape == (1, 32, 64, 3)
    assert img_shape.tolist() == [[32, 64]]


def test_float_layout_is_normalised_planar_and_zero_padded():
    floats = Preprocessing(
        scale=(64, 64),
        input_size=(64, 64),
        layout="float32_chw",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    )
    pixels = Preprocessing(scale=(64, 64), input_size=(64, 64))
    data = [encode(photo(30, 60))]
    batch, img_shape, _ = floats(data)
    assert batch.shape == (1, 3, 64, 64)
    assert batch.dtype == np.float32
    expected = (pixels(data)[0].astype(np.float64) - floats.mean) / floats.std
    height, width = img_shape[0]
    expected[0, height:], expected[0, :, width:] = 0, 0
    np.testing.assert_allclose(batch, expected.transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize(
    ("resample", "pillow"),
    [("pillow_bilinear", Image.Resampling.BILINEAR), ("pillow_bicubic", Image.Resampling.BICUBIC)],
)
def test_pillow_resamples_as_pillow_does(resample, pillow):
    picture = photo(333, 500)
    batch, img_shape, _ = Preprocessing(scale=(96, 64), resample=resample)([encode(picture)])
    height, width = img_shape[0]
    expected = np.asarray(Image.fromarray(picture).resize((width, height), pillow))
    np.testing.assert_array_equal(batch[0, :height, :width], expected)


def test_huggingface_sizes_are_stretched_to_multiples_and_fit_a_fixed_input():
    free = Preprocessing(scale=(1333, 800), size_rule="huggingface")
    assert free.target_size(480, 640) == (800, 1088)  # 800 x 1066
    assert free.target_size(2, 900) == (32, 1344)
    fixed = Preprocessing(scale=(1333, 800), size_rule="huggingface", input_size=(800, 1344))
    assert fixed.target_size(480, 640) == (800, 1088)
    assert fixed.target_size(640, 480) == (800, 608)  # 1088 x 800 would not fit


def test_a_bad_image_among_several_is_named():
    with pytest.raises(InputError, match="image 1 of 3: not an image"):
        SHAPES([encode(photo()), b"nonsense", encode(photo())])


def test_repository_parameters_are_json():
    parameters = {
        "scale": "[1333, 800]", "pad_divisor": "64", "keep_ratio": "true", "layout": "float32_chw",
        "resample": "pillow_bicubic", "size_rule": "huggingface",
    }  # fmt: skip
    expected = Preprocessing(
        scale=(1333, 800), pad_divisor=64, layout="float32_chw", resample="pillow_bicubic", size_rule="huggingface"
    )
    assert Preprocessing.from_repository(parameters) == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parameter 'scale' is missing; allowed: scale, keep_ratio"),
        ({"scale": "[1, 1]", "scal": "3"}, "unknown parameter 'scal'; allowed: scale"),
        ({"scale": "256 256"}, "parameter 'scale' must be JSON"),
        (
            {"scale": "[1, 1]", "layout": "nchw"},
            "parameter 'layout' must be one of: uint8_hwc, float32_chw; got 'nchw'",
        ),
        (
            {"scale": "[1, 1]", "resample": "area"},
            "'resample' must be one of: opencv_bilinear, pillow_bilinear, pillow_bi",
        ),
        ({"scale": "[1, 1]", "size_rule": "hf"}, "'size_rule' must be one of: mmdetection, huggingface; got 'hf'"),
        ({"scale": "[1, 1]", "keep_ratio": "false"}, "needs 'input_size'"),
    ],
)
def test_wrong_repository_parameters_are_named(parameters, message):
    with pytest.raises(InputError, match=message):
        Preprocessing.from_repository(parameters)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 2])
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_pixels_and_padding_are_those_of_mmdetections_pipeline(tmp_path, size, extension):
    """LoadImageFromFile, Resize, then DetDataPreprocessor: normalised and padded as training saw it."""
    from m2f_export.mmcv_ops import ensure_mmcv_ops

    ensure_mmcv_ops()
    from mmcv.transforms import Compose, LoadImageFromFile
    from mmdet.datasets.transforms import PackDetInputs, Resize
    from mmdet.models import DetDataPreprocessor

    path = tmp_path / f"image.{extension}"
    path.write_bytes(encode(photo(*size), extension))
    steps = [LoadImageFromFile(), Resize(scale=(256, 256), keep_ratio=True), PackDetInputs(meta_keys=("img_shape",))]
    packed = Compose(steps)({"img_path": str(path), "img_id": 0})
    preprocessor = DetDataPreprocessor(
        mean=[124, 116, 104], std=[58, 57, 57], bgr_to_rgb=True, pad_size_divisor=256, pad_value=0
    )
    data = preprocessor({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})
    batch, img_shape, _ = SHAPES([path.read_bytes()])
    assert tuple(img_shape[0]) == packed["data_samples"].img_shape
    normalised = (batch.astype(np.float32) - np.float32([124, 116, 104])) / np.float32([58, 57, 57])
    np.testing.assert_allclose(normalised.transpose(0, 3, 1, 2), data["inputs"].numpy(), atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize(("longest", "shortest", "divisor"), [(1333, 800, 32), (640, 640, 1), (2560, 640, 64)])
def test_huggingface_sizes_are_those_of_its_processors(longest, shortest, divisor):
    from transformers.image_transforms import get_size_with_aspect_ratio

    preprocessing = Preprocessing(scale=(longest, shortest), size_rule="huggingface", pad_divisor=divisor)
    for size in np.random.default_rng(0).integers(16, 3000, (5000, 2)).tolist():
        theirs = get_size_with_aspect_ratio(size, shortest, longest)
        assert preprocessing.target_size(*size) == tuple(-(-side // divisor) * divisor for side in theirs)


@pytest.mark.torch
@pytest.mark.parametrize("scale", [(256, 256), (1333, 800), (512, 320)])
def test_sizes_are_rounded_as_mmcv_rounds_them(scale):
    from mmcv.image import rescale_size

    rng = np.random.default_rng(0)
    preprocessing = Preprocessing(scale=scale)
    for height, width in rng.integers(2, 3000, (500, 2)).tolist():
        expected_width, expected_height = rescale_size((width, height), scale)
        if min(expected_width, expected_height) >= 1:  # mmcv would make an empty image of a thread
            assert preprocessing.target_size(height, width) == (expected_height, expected_width)
