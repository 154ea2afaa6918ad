from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2f.batch import dense_masks, of_each_image, stack_instances
from m2f.contract import OUTPUTS, STRUCTURED_OUTPUTS
from m2f.errors import EngineError, InputError
from m2f.limits import MAX_RLE_BYTES, MAX_WORK
from m2f.postprocess import Instances
from m2f.rle import encode_mask

DTYPES = {"FP32": np.float32, "INT32": np.int32, "BYTES": np.object_, "UINT8": np.uint8}


def an_image(rng, count, height, width):
    masks = rng.integers(0, 2, (count, height, width), dtype=np.uint8)
    masks[:, 0, 0] = 1  # an empty mask still has counts; these are not empty
    instances = Instances(
        scores=rng.random(count, np.float32),
        labels=rng.integers(0, 5, count, np.int32),
        boxes=rng.random((count, 4), np.float32),
        areas=masks.sum(axis=(1, 2), dtype=np.int32),
        queries=rng.integers(0, 9, count, np.int32),
        rle=[encode_mask(mask) for mask in masks],
        size_hw=(height, width),
    )
    return instances, masks


@given(
    seed=st.integers(0, 1 << 30),
    sizes=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
)
def test_rows_beyond_an_images_own_are_padding(seed, sizes):
    rng = np.random.default_rng(seed)
    images, masks = zip(*(an_image(rng, *size) for size in sizes), strict=True)
    outputs = stack_instances(images)
    assert tuple(outputs) == STRUCTURED_OUTPUTS
    dense = dense_masks(outputs["rle"], outputs["size"])
    rows = max(count for count, _, _ in sizes)
    assert dense.shape == (len(sizes), rows, max(h for _, h, _ in sizes), max(w for _, _, w in sizes))
    for i, (image, mask, (count, height, width)) in enumerate(zip(images, masks, sizes, strict=True)):
        assert outputs["num_instances"][i].tolist() == [count]
        assert outputs["size"][i].tolist() == [height, width]
        np.testing.assert_array_equal(outputs["scores"][i, :count], image.scores)
        np.testing.assert_array_equal(outputs["boxes"][i, :count], image.boxes)
        assert outputs["rle"][i].tolist() == image.rle + [b""] * (rows - count)
        assert (outputs["scores"][i, count:] == 0).all()
        assert (outputs["labels"][i, count:] == -1).all()
        np.testing.assert_array_equal(dense[i, :count, :height, :width], mask)
        assert dense[i].sum() == mask.sum()
    packed = dense_masks(outputs["rle"], outputs["size"], packed=True)
    np.testing.assert_array_equal(packed, np.packbits(dense, axis=3))


def test_dtypes_and_shapes_are_the_contracts():
    outputs = stack_instances([an_image(np.random.default_rng(0), 3, 4, 5)[0]])
    outputs["masks"] = dense_masks(outputs["rle"], outputs["size"])
    outputs["packed_masks"] = dense_masks(outputs["rle"], outputs["size"], packed=True)
    for tensor in OUTPUTS:
        if tensor.name in outputs:
            array = outputs[tensor.name]
            assert array.dtype == DTYPES[tensor.datatype]
            assert all(dim in (-1, size) for dim, size in zip(tensor.dims, array.shape[1:], strict=True))


def test_where_no_mask_was_exported_there_are_no_dense_ones():
    rle = np.full((1, 3), b"", object)
    assert dense_masks(rle, np.array([[7, 9]], np.int32)).shape == (1, 0, 7, 9)


@pytest.mark.parametrize("sides", [(-10, -10), (-1, -100), (0, 100), (10, 0), (10, -10), (1, 65_536), (-(2**31),) * 2])
@pytest.mark.parametrize("packed", [False, True])
def test_sizes_that_no_image_has_are_refused(sides, packed):
    rle = np.array([[b""], [encode_mask(np.ones((10, 10)))]], object)
    size = np.array([(100, 100), sides], np.int32)
    message = rf"image 1 of 2: size \({sides[0]}, {sides[1]}\) must lie within 1 x 1 and 65535 x 65535"
    with pytest.raises(InputError, match=message):
        dense_masks(rle, size, packed=packed)
    with pytest.raises(InputError, match=r"^size .* must lie within"):
        dense_masks(rle[1:], size[1:], packed=packed)


def a_request():
    return {
        "cls_logits": np.arange(2 * 3 * 4).reshape(2, 3, 4),
        "mask_logits": np.arange(2 * 3 * 5 * 6).reshape(2, 3, 5, 6),
        "img_shape": np.array([[3, 4], [5, 6]], np.int32),
        "ori_shape": np.array([[7, 8], [9, 10]], np.int32),
    }


def test_a_request_comes_apart_image_by_image():
    arrays = a_request()
    images = of_each_image(arrays, lambda image: image, mask_stride=2)
    assert len(images) == 2
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image.cls_logits, arrays["cls_logits"][i])
        np.testing.assert_array_equal(image.mask_logits, arrays["mask_logits"][i])
        assert image.geometry.cells == (5, 6)
        padded, valid, original = list(zip(*image.geometry, strict=True))[1:]
        assert (padded, valid, original) == ((10, 12), *(tuple(arrays[n][i]) for n in ("img_shape", "ori_shape")))


@pytest.mark.parametrize("name", ["img_shape", "ori_shape"])
def test_sizes_of_a_wrong_shape_are_refused(name):
    with pytest.raises(InputError, match=rf"{name} must have shape \[N, 2\]"):
        of_each_image({**a_request(), name: np.zeros((2, 3), np.int32)}, work=None)


def test_an_image_with_an_error_is_named_where_there_are_several():
    def refuse(image):
        if image.geometry.original == (9, 10):
            raise InputError("no", kind="parameter")

    with pytest.raises(InputError, match=r"^image 1 of 2: no$") as error:
        of_each_image(a_request(), refuse)
    assert error.value.kind == "parameter"
    with pytest.raises(InputError, match=r"^no$"):
        of_each_image({name: array[1:] for name, array in a_request().items()}, refuse)


def test_an_original_image_larger_than_allowed_is_refused():
    with pytest.raises(InputError, match=r"image 1 of 2: ori_shape \(9, 10\) is too large; allowed are 89 pixels"):
        of_each_image(a_request(), lambda _image: None, max_pixels=89)


@pytest.mark.parametrize("classes", [0, 1])
def test_logits_of_no_class_are_refused_before_they_are_looked_at(classes):
    arrays = {**a_request(), "cls_logits": np.full((2, 3, classes), np.nan, np.float32)}
    with pytest.raises(InputError, match=r"cls_logits \(3, \d\) must have from 1 to 1000 queries, and columns for"):
        of_each_image(arrays, work=None)


def test_more_work_than_a_request_may_make_is_refused_before_any_is_done():
    arrays = {**a_request(), "ori_shape": np.array([[8192, 8192]] * 2, np.int32)}
    most = MAX_WORK // (2 * 8192 * 8192)
    assert of_each_image(arrays, lambda _image: 1, values=lambda *_sizes: most) == [1, 1]
    message = (
        f"{2 * 8192 * 8192} pixels of original images x {most + 1} values = .*; allowed are 17179869184: send fewer"
    )
    with pytest.raises(InputError, match=message) as error:
        of_each_image(arrays, work=None, values=lambda *_sizes: most + 1)
    assert error.value.kind == "output_too_large"


def test_a_size_that_no_image_has_is_named():
    arrays = {**a_request(), "ori_shape": np.array([[7, 8], [-(2**31)] * 2], np.int32)}
    with pytest.raises(InputError, match=r"image 1 of 2: ori_shape \(-2147483648, -2147483648\) must lie within"):
        of_each_image(arrays, work=lambda _image: 1)


def test_the_values_of_a_request_are_those_of_its_queries_and_classes():
    seen = []
    of_each_image(a_request(), lambda _image: 1, values=lambda *sizes: seen.append(sizes) or 1)
    assert seen == [(3, 3)]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_class_logits_that_have_no_softmax_are_the_engines_fault(wrong):
    arrays = {**a_request(), "cls_logits": np.zeros((2, 3, 4), np.float32)}
    arrays["cls_logits"][1, 0] = -np.inf, 1, 2, 3  # a class that never is
    assert of_each_image(arrays, lambda _image: 1) == [1, 1]
    arrays["cls_logits"][1, 2, 1] = wrong
    with pytest.raises(EngineError, match="cls_logits are not finite"):
        of_each_image(arrays, work=None)


def test_more_rle_than_allowed_is_refused():
    image, _ = an_image(np.random.default_rng(0), 2, 4, 5)
    half = replace(image, rle=[bytes(MAX_RLE_BYTES // 4)] * 2)
    assert stack_instances([half, half])["rle"].shape == (2, 2)
    with pytest.raises(
        InputError, match="'rle' would take 67108865 bytes; allowed are 67108864: raise 'score_thr"
    ) as e:
        stack_instances([half, half, replace(image, rle=[b"", b"0"])])
    assert e.value.kind == "output_too_large"


def test_more_instances_than_allowed_are_refused():
    instances = [an_image(np.random.default_rng(0), k, 4, 5)[0] for k in (2, 5)]
    assert stack_instances(instances, max_instances=5)["scores"].shape == (2, 5)
    with pytest.raises(InputError, match="an image has 5 instances; allowed are 4: raise 'score_threshold', or set"):
        stack_instances(instances, max_instances=4)
