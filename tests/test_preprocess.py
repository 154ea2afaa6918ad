from dataclasses import replace

import cv2
import numpy as np
import pytest
from memory import peak_of
from pictures import encode, oriented, photo
from PIL import Image

from m2f.errors import InputError
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


def test_a_stretched_image_smaller_than_the_input_is_padded():
    stretched = Preprocessing(scale=(50, 20), keep_ratio=False, input_size=(32, 64), pad_value=(1, 2, 3))
    batch, img_shape, _ = stretched([encode(photo(100, 100))])
    assert img_shape.tolist() == [[20, 50]]
    assert (batch[0, 20:] == (1, 2, 3)).all()
    assert (batch[0, :, 50:] == (1, 2, 3)).all()
    assert replace(stretched, scale=(128, 16)).target_size(100, 100) == (16, 64)  # what the input holds of it


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_an_image_is_turned_by_its_exif_or_left_as_stored(extension):
    data = [oriented(6, extension)]
    upright, _, upright_shape = Preprocessing(scale=(83, 83), pad_divisor=1)(data)
    stored, _, stored_shape = Preprocessing(scale=(83, 83), pad_divisor=1, exif_orientation=False)(data)
    assert (upright_shape.tolist(), stored_shape.tolist()) == ([[83, 61]], [[61, 83]])
    np.testing.assert_array_equal(upright[0], np.rot90(stored[0], -1))


def test_padding_of_floats_has_a_value_of_its_own():
    floats = Preprocessing(scale=(64, 64), layout="float32_chw", pad_value=(9, 9, 9), float_pad_value=114.5)
    small, large = encode(photo(20, 40)), encode(photo(64, 64))
    batch, img_shape, _ = floats([small, large])
    height, width = img_shape[0]
    assert (batch[0, :, height:] == 114.5).all()
    assert (batch[0, :, :, width:] == 114.5).all()
    pixels = replace(floats, layout="uint8_hwc")([small])[0]
    assert (pixels[0, height:] == 9).all()


def test_floats_may_be_resized_without_rounding():
    normalisation = {"mean": (100.0, 110.0, 120.0), "std": (50.0, 60.0, 70.0)}
    rounded = Preprocessing(scale=(64, 48), layout="float32_chw", **normalisation)
    data = [encode(photo(333, 500))]
    exact, (size,), _ = replace(rounded, float_resize=True)(data)
    height, width = size
    expected = cv2.resize(photo(333, 500).astype(np.float32), (width, height))
    expected = ((expected - rounded.mean) / rounded.std).transpose(2, 0, 1)
    np.testing.assert_allclose(exact[0, :, :height, :width], expected, rtol=0, atol=1e-6)
    assert 0.1 / 70 < np.abs(exact - rounded(data)[0]).max() < 1 / 50
    pixels = replace(rounded, layout="uint8_hwc", float_resize=True)(data)[0]
    np.testing.assert_array_equal(pixels, replace(rounded, layout="uint8_hwc")(data)[0])


@pytest.mark.parametrize("layout", ["uint8_hwc", "float32_chw"])
@pytest.mark.parametrize("input_size", [None, (256, 288)])
def test_images_of_one_request_are_what_each_is_alone(layout, input_size):
    normalisation = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    preprocessing = Preprocessing(
        scale=(256, 200), input_size=input_size, pad_value=(124, 116, 104), layout=layout, **normalisation
    )
    files = [encode(photo(*size, seed)) for seed, size in enumerate([(90, 300), (300, 90), (200, 256), (5, 5)])]
    batch, img_shape, ori_shape = preprocessing(files)
    assert batch.flags.c_contiguous
    last = batch if layout == "uint8_hwc" else batch.transpose(0, 2, 3, 1)
    padding = (124, 116, 104) if layout == "uint8_hwc" else (0, 0, 0)
    for index, data in enumerate(files):
        alone, alone_img_shape, alone_ori_shape = preprocessing([data])
        height, width = img_shape[index]
        assert (height, width) == tuple(alone_img_shape[0])
        assert tuple(ori_shape[index]) == tuple(alone_ori_shape[0])
        alone = alone[0] if layout == "uint8_hwc" else alone[0].transpose(1, 2, 0)
        np.testing.assert_array_equal(last[index, :height, :width], alone[:height, :width])
        assert (last[index, height:] == padding).all()
        assert (last[index, :, width:] == padding).all()


def test_the_order_of_the_channels_does_not_change_how_they_are_resized():
    """mmdetection resizes BGR, this module RGB."""
    rng = np.random.default_rng(0)
    for height, width, new_height, new_width in rng.integers(1, 300, (100, 4)).tolist():
        rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        bgr = np.ascontiguousarray(rgb[:, :, ::-1])
        resized = [
            cv2.resize(pixels, (new_width, new_height)).reshape(new_height, new_width, 3) for pixels in (rgb, bgr)
        ]
        np.testing.assert_array_equal(resized[0], resized[1][:, :, ::-1])


@pytest.mark.parametrize(
    ("extension", "options"), [("jpg", {}), ("png", {"compress_level": 1}), ("webp", {"method": 0})]
)
def test_the_pixels_of_one_image_are_held_however_many_come(extension, options):
    preprocessing = Preprocessing(scale=(320, 320))
    files = [encode(photo(1000, 1500), extension, **options)] * 4
    _, peak = peak_of(lambda: preprocessing(files))
    rows = 2 * 4 * 320 * 320 * 3  # each image's, and the input they are stacked to
    assert peak < 2 * 3 * 1000 * 1500 + rows


def test_float_layout_is_exactly_the_arithmetic_it_stands_for():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mean, std = rng.uniform(0, 200, 3), rng.uniform(0.2, 90, 3)
        floats = Preprocessing(scale=(64, 64), layout="float32_chw", mean=tuple(mean), std=tuple(std))
        data = [encode(rng.integers(0, 256, (*rng.integers(1, 70, 2), 3), dtype=np.uint8))]
        batch, ((height, width),), _ = floats(data)
        pixels = Preprocessing(scale=(64, 64))(data)[0][0, :height, :width]
        expected = (pixels - mean.astype(np.float32)) / std.astype(np.float32)
        np.testing.assert_array_equal(batch[0, :, :height, :width], expected.transpose(2, 0, 1))


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


def test_steps_after_the_resize_are_a_part_of_the_image():
    square = [{"step": "pad", "square": True, "value": [9, 8, 7]}, {"step": "resize", "scale": [64, 64]}]
    preprocessing = Preprocessing(scale=(100, 50), then=tuple(square))
    batch, img_shape, ori_shape = preprocessing([encode(photo(100, 200))])
    assert (batch.shape, img_shape.tolist(), ori_shape.tolist()) == ((1, 64, 64, 3), [[64, 64]], [[100, 200]])
    assert (batch[0, 40:] == (9, 8, 7)).all()  # beside the border, where pixels mix
    fixed = replace(preprocessing, input_size=(32, 64))
    assert fixed.target_size(100, 200) == (32, 32)
    padded = replace(fixed, then=tuple(square[:1]))
    assert padded.target_size(100, 200) == (32, 32)
    assert padded([encode(photo(100, 200))])[0].shape == (1, 32, 64, 3)


def test_images_that_are_not_resized_may_be_as_large_as_an_input():
    as_they_are = Preprocessing(scale=None)
    assert as_they_are.target_size(70, 50) == (70, 50)
    assert as_they_are([encode(photo(70, 50))])[0].shape == (1, 96, 64, 3)
    assert as_they_are.target_size(4096, 4096) == (4096, 4096)
    for preprocessing, size, made in (
        (as_they_are, (4096, 4097), "4097 x 4096"),
        (replace(as_they_are, scale_factor=(4.0, 4.0)), (1000, 1500), "6000 x 4000"),
        (replace(as_they_are, then=({"step": "pad", "square": True},)), (1, 60_000), "60000 x 60000"),
    ):
        message = f"{size[1]} x {size[0]} becomes {made} for the network; allowed are 16777216 pixels"
        with pytest.raises(InputError, match=message):
            preprocessing.target_size(*size)
    assert replace(as_they_are, input_size=(64, 64)).target_size(100, 200) == (32, 64)


@pytest.mark.parametrize("layout", ["uint8_hwc", "float32_chw"])
@pytest.mark.parametrize("color", ["opencv_grey", "pillow_grey"])
def test_grey_has_one_channel(layout, color):
    grey = Preprocessing(
        scale=(64, 64), color=color, layout=layout, mean=(100.0,), std=(50.0,), pad_value=(7,), float_pad_value=0.5
    )
    picture = photo(30, 64)
    wanted = cv2.imdecode(np.frombuffer(encode(picture), np.uint8), cv2.IMREAD_GRAYSCALE)
    if color == "pillow_grey":
        wanted = np.asarray(Image.fromarray(picture).convert("L"))
    batch, img_shape, _ = grey([encode(picture), encode(photo(64, 64))])
    batch = batch if layout == "uint8_hwc" else batch.transpose(0, 2, 3, 1)
    assert (batch.shape, img_shape[0].tolist()) == ((2, 64, 64, 1), [30, 64])
    levels, padding = (wanted, 7) if layout == "uint8_hwc" else ((wanted - np.float32(100)) / np.float32(50), 0.5)
    np.testing.assert_array_equal(batch[0, :30, :, 0], levels)
    assert (batch[0, 30:] == padding).all()


def test_a_bad_image_among_several_is_named():
    with pytest.raises(InputError, match="image 1 of 3: not an image"):
        SHAPES([encode(photo()), b"nonsense", encode(photo())])


def test_a_file_larger_than_allowed_is_refused_unread():
    good = encode(photo())
    limited = Preprocessing(scale=(256, 256), input_size=(256, 256), max_bytes=len(good))
    limited([good])
    with pytest.raises(InputError, match=f"image 1 of 2: the image is too large: {len(good) + 1} bytes .* {len(good)}"):
        limited([good, bytes(len(good) + 1)])


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
        ({}, "parameter 'scale' is missing; allowed: scale, scale_factor, keep_ratio"),
        ({"scale": "[1, 1]", "scal": "3"}, "unknown parameter 'scal'; allowed: scale"),
        (
            {"scale": "256 256"},
            r"parameter 'scale' must be two whole numbers >= 1, such as \[256, 256\], or null; got '256 256'",
        ),
        ({"scale": "[1333]"}, r"'scale' must be two whole numbers >= 1, .*; got \(1333,\)"),
        ({"scale": "[1, 1]", "input_size": "[0, 64]"}, "'input_size' must be two whole numbers >= 1, .*, or null"),
        ({"scale": "[1, 1]", "pad_value": "[0, 0, 256]"}, "'pad_value' must be three whole numbers from 0 to 255"),
        ({"scale": "[1, 1]", "std": "[1, 1]"}, "'std' must be three numbers, .*, or one for grey"),
        ({"scale": "[1, 1]", "float_pad_value": "[0]"}, "'float_pad_value' must be a finite number"),
        ({"scale": "[1, 1]", "float_pad_value": "NaN"}, "'float_pad_value' must be a finite number"),
        (
            {"scale": "[1, 1]", "float_resize": "true", "resample": "pillow_bilinear"},
            "needs 'resample' opencv_bilinear",
        ),
        ({"scale": "[1, 1]", "exif_orientation": "0"}, "'exif_orientation' must be true or false"),
        ({"scale": "[1, 1]", "float_resize": "1"}, "'float_resize' must be true or false"),
        (
            {"scale": "[1, 1]", "layout": "nchw"},
            "parameter 'layout' must be one of: uint8_hwc, float32_chw; got 'nchw'",
        ),
        (
            {"scale": "[1, 1]", "resample": "area"},
            "'resample' must be one of: opencv_bilinear, pillow_bilinear, pillow_bi",
        ),
        (
            {"scale": "[1, 1]", "size_rule": "hf"},
            "'size_rule' must be one of: mmdetection, mmdetection_floor, detectron2, huggingface, huggi",
        ),
        ({"scale": "[1, 1]", "scale_factor": "[1, 1]"}, "'scale' and 'scale_factor' are both set; allowed: one"),
        ({"scale": "null", "scale_factor": "[1, 0]"}, "'scale_factor' must be two numbers above 0, .*, or null"),
        ({"scale": "[1, 1]", "color": "grey"}, "'color' must be one of: rgb, opencv_grey, pillow_grey; got 'grey'"),
        (
            {"scale": "[1, 1]", "color": "opencv_grey", "mean": "[1, 2, 3]"},
            "'mean' must have 1 numbers, for 'color' is opencv_grey; got",
        ),
        ({"scale": "[1, 1]", "pad_value": "[7]"}, "'pad_value' must have 3 numbers, for 'color' is rgb"),
        ({"scale": "[1, 1]", "then": "{}"}, "'then' must be a list of steps, such as .*; steps: resize, pad; got"),
        ({"scale": "[1, 1]", "then": '[{"step": "crop"}]'}, "'then' must be a list of steps"),
        ({"scale": "[1, 1]", "then": '["pad"]'}, "'then' must be a list of steps"),
        (
            {"scale": "[1, 1]", "then": '[{"step": "pad", "divisor": 8}, {"step": "pad", "to": 8}]'},
            "'then', step 1: unknown parameter 'to'; allowed: size, divisor, square, value",
        ),
        (
            {"scale": "[1, 1]", "then": '[{"step": "pad", "divisor": 0}]'},
            "'then', step 0: parameter 'divisor' must be a whole number >= 1, or null; got 0",
        ),
        (
            {"scale": "[1, 1]", "then": '[{"step": "pad", "value": [7]}]'},
            r"'then', step 0: parameter 'value' must have 3 numbers; got \(7,\)",
        ),
        (
            {"scale": "[1, 1]", "then": '[{"step": "resize", "resample": "pillow_bilinear"}]', "float_resize": "true"},
            "needs 'resample' opencv_bilinear",
        ),
        ({"scale": "[1, 1]", "max_pixels": "0"}, "'max_pixels' must be a whole number >= 1; got 0"),
        ({"scale": "[1, 1]", "max_bytes": "1e9"}, "'max_bytes' must be a whole number >= 1; got 1000000000.0"),
    ],
)
def test_wrong_repository_parameters_are_named(parameters, message):
    with pytest.raises(InputError, match=message):
        Preprocessing.from_repository(parameters)


@pytest.fixture(scope="module")
def mmdetection(tmp_path_factory):
    """LoadImageFromFile, Resize, PackDetInputs and DetDataPreprocessor for the files of one request."""
    from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

    ensure_mmcv_ops()
    from mmcv.transforms import Compose, LoadImageFromFile
    from mmdet.datasets.transforms import PackDetInputs, Resize
    from mmdet.models import DetDataPreprocessor

    path = tmp_path_factory.mktemp("mmdetection") / "image"

    def prepare(files, *, scale, divisor, mean=(0, 0, 0), std=(1, 1, 1)):
        steps = Compose(
            [LoadImageFromFile(), Resize(scale=scale, keep_ratio=True), PackDetInputs(meta_keys=("img_shape",))]
        )
        packed = []
        for data in files:
            path.write_bytes(data)
            packed.append(steps({"img_path": str(path), "img_id": 0}))
        preprocessor = DetDataPreprocessor(mean=mean, std=std, bgr_to_rgb=True, pad_size_divisor=divisor)
        samples = [p["data_samples"] for p in packed]
        data = preprocessor({"inputs": [p["inputs"] for p in packed], "data_samples": samples})
        return data["inputs"].numpy(), [sample.img_shape for sample in samples]

    return prepare


def random_files(count, seed):
    """Files of random sizes, 2 to 600 pixels a side, most of them long or wide; noise, so that every tap shows."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        size = np.exp(rng.uniform(np.log(2), np.log(600), 2)).astype(int)
        picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        extension, options = [
            ("png", {"compress_level": 1}),
            ("jpg", {"subsampling": int(rng.integers(0, 3))}),
            ("webp", {"method": 0}),
        ][rng.integers(3)]
        yield encode(picture, extension, **options)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("scale", "divisor"), [((256, 256), 256), ((333, 200), 32), ((64, 48), 1), ((1333, 800), 32)])
def test_pixels_and_padding_are_those_of_mmdetections_pipeline(mmdetection, scale, divisor):
    preprocessing = Preprocessing(scale=scale, pad_divisor=divisor)
    checked = 0
    for data in random_files(8 if scale[0] > 1000 else 40, seed=scale[0]):
        batch, img_shape, ori_shape = preprocessing([data])
        if (ori_shape.min() * min(scale) / ori_shape.max() < 1) or img_shape.min() <= 1:
            continue  # mmcv would make an empty image of a thread
        theirs, their_shapes = mmdetection([data], scale=scale, divisor=divisor)
        assert tuple(img_shape[0]) == their_shapes[0]
        np.testing.assert_array_equal(batch.transpose(0, 3, 1, 2), theirs)
        checked += 1
    assert checked >= (5 if scale[0] > 1000 else 30)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_normalised_and_padded_as_by_mmdetection(mmdetection, seed):
    normalisation = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    preprocessing = Preprocessing(scale=(333, 200), layout="float32_chw", **normalisation)
    sizes = np.random.default_rng(seed).integers(30, 400, (3, 2)).tolist()
    files = [encode(photo(*size, seed), "jpg") for size in sizes]
    batch, img_shape, _ = preprocessing(files)
    theirs, their_shapes = mmdetection(files, scale=(333, 200), divisor=32, **normalisation)
    assert [tuple(shape) for shape in img_shape] == their_shapes
    np.testing.assert_allclose(batch, theirs, rtol=0, atol=1e-6)


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
