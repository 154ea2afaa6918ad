"""Grey networks: the pixels are those of `cv2.imread` in grey mode, or of Pillow; from files to instances."""

import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from exports import m2f_export
from pictures import encode, oriented
from PIL import Image
from sources import random_checkpoint, small_config

from m2f.image import decode_image
from m2f_cli.main import main
from m2f_export.export_errors import ExportError

NOISE = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
GREY_PIXELS = np.repeat(NOISE[:, :, :1], 3, axis=2)


def chunked(png, name, data):
    """A PNG with one more chunk behind its header."""
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png[:33] + chunk + png[33:]


def gamma(value, pixels=NOISE):
    return chunked(encode(pixels), b"gAMA", struct.pack(">I", round(value * 100_000)))


def saved(mode, extension, **options):
    return encode(np.asarray(Image.fromarray(NOISE).convert(mode)), extension, **options)


FILES = {
    "JPEG": encode(NOISE, "jpg"),
    "JPEG, every pixel": encode(NOISE, "jpg", subsampling=0),
    "JPEG, progressive": encode(NOISE, "jpg", progressive=True),
    "JPEG of RGB": encode(NOISE, "jpg", keep_rgb=True),
    "JPEG of grey": saved("L", "jpg"),
    "JPEG, turned": oriented(6, "jpg"),
    "WebP": encode(NOISE, "webp", lossless=True),
    "WebP, lossy": encode(NOISE, "webp"),
    "PNG": encode(NOISE),
    "PNG, alpha": saved("RGBA", "png"),
    "PNG of grey": saved("L", "png"),
    "PNG, two levels": saved("1", "png"),
    "PNG, sRGB": chunked(encode(NOISE), b"sRGB", b"\0"),
    "PNG, sRGB, of grey": chunked(encode(GREY_PIXELS), b"sRGB", b"\0"),
    "PNG, gamma": gamma(0.5),
    "PNG, nearly linear": gamma(0.96),
    "PNG, one way linear": gamma(1.0501),
    "PNG, linear": gamma(1),
    "PNG, turned": oriented(6, "png"),
}


@pytest.mark.parametrize("name", FILES)
def test_grey_is_what_opencv_reads(name):
    ours = decode_image(FILES[name], max_pixels=10**6, grey=True)
    np.testing.assert_array_equal(ours, cv2.imdecode(np.frombuffer(FILES[name], np.uint8), cv2.IMREAD_GRAYSCALE))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("JPEG")])
def test_pillow_reads_the_same_luma(name):
    """Where simplejpeg has no wheel."""
    ours, pillows = (
        decode_image(FILES[name], max_pixels=10**6, grey=True, **options) for options in ({}, {"jpeg_decoder": None})
    )
    np.testing.assert_array_equal(pillows, ours)


R50 = "mask2former_r50_8xb2-lsj-50e_coco.py"
GREY_MODEL = """
model['backbone']['in_channels'] = {channels}
model['data_preprocessor'] = dict(_delete_=True, type='DetDataPreprocessor', mean=[118.5], std=[57.5],
                                  pad_size_divisor=32)
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile', color_type='grayscale'),
    dict(type='Resize', scale=(160, 96), keep_ratio=True),
    dict(type='Pad', pad_to_square=True, pad_val=7),
    dict(type='PackDetInputs')]))
"""


@pytest.mark.torch
@pytest.mark.parametrize(("channels", "loads", "message"), [
    (3, "grayscale", "in_channels is 3; allowed: 1, for the pipeline loads grey images"),
    (4, "grayscale", "in_channels is 4; allowed: 1"),
    (1, "color", "in_channels is 1; allowed: 3, for the pipeline loads colour; give LoadImageFromFile color"),
])  # fmt: skip
def test_a_network_of_other_channels_than_the_pipeline_loads_is_refused(tmp_path, channels, loads, message):
    from m2f_export.sources.mmdetection import describe_mmdet

    config = small_config(tmp_path, R50, GREY_MODEL.format(channels=channels).replace("grayscale", loads))
    with pytest.raises(ExportError, match=rf"{R50}: model\.backbone\.{message}"):
        describe_mmdet(config)


def served_through_triton(result, repository, dims):
    """Whether an export was compared up to Triton, and the server takes the input that its graph has."""
    assert result.exit_code == 0, result.output
    assert [step["name"] for step in json.loads(result.stdout)["comparison"]["steps"]][-1] == "Triton"
    for model in ("preprocess", "engine", "tensor"):
        text = (repository / f"mask2former_{model}/config.pbtxt").read_text()
        assert f'{{ name: "input" data_type: {dims} }}' in text
    doctor = CliRunner().invoke(main, ["doctor", str(repository), "--json"])
    assert not [found for found in json.loads(doctor.stdout)["findings"] if found["level"] == "error"], doctor.stdout


@pytest.mark.server
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("layout", "dims"), [
    pytest.param("uint8_hwc", "TYPE_UINT8 dims: [ -1, -1, 1 ]", marks=pytest.mark.more),
    pytest.param("float32_chw", "TYPE_FP32 dims: [ 1, -1, -1 ]", marks=pytest.mark.official),
])  # fmt: skip
def test_a_grey_network_of_mmdetection_is_served(tmp_path, layout, dims):
    config = small_config(tmp_path, R50, GREY_MODEL.format(channels=1))
    checkpoint, repository = random_checkpoint(config), tmp_path / "mine"
    options = ["--repository", repository, "--layout", layout, "--json"]
    served_through_triton(m2f_export(config, checkpoint, *options), repository, dims)


@pytest.mark.official
@pytest.mark.server
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_a_grey_network_of_hugging_face_is_served(tmp_path):
    from huggingface_models import MASK2FORMER, build, processor_for, save, swin

    backbone = swin()
    backbone.num_channels = 1
    processor = processor_for(MASK2FORMER, image_mean=[0.5], image_std=[0.25])
    folder = save(tmp_path / "model", model=build(MASK2FORMER, backbone=backbone), processor=processor)
    repository = tmp_path / "mine"
    result = m2f_export(folder, "--repository", repository, "--json")
    served_through_triton(result, repository, "TYPE_UINT8 dims: [ -1, -1, 1 ]")
    (folder / "preprocessor_config.json").unlink()
    processor_for(MASK2FORMER).save_pretrained(folder)
    wrong = m2f_export(folder, "--repository", repository)
    assert "image_mean (0.485, 0.456, 0.406) (allowed: of a network for grey images one number)" in " ".join(
        wrong.stderr.split()
    )
