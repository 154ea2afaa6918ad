import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from m2f.errors import InputError
from m2f.kernels import KERNELS
from m2f.rle import decode, decode_into, encode_mask

MASKS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))


def pycocotools_rle(mask):
    return coco.encode(np.asfortranarray(mask))["counts"]


every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def edges_of(mask):
    column_major = mask.T.reshape(-1)
    return np.flatnonzero(np.diff(column_major, prepend=0, append=0)).astype(np.uint32)


@every_kernel
@settings(deadline=None)
@given(mask=MASKS)
def test_equals_pycocotools_both_ways(kernel, mask):
    counts = kernel.encode(edges_of(mask), mask.size)
    assert counts == encode_mask(mask) == pycocotools_rle(mask)
    np.testing.assert_array_equal(decode(counts, *mask.shape, kernel=kernel), mask)
    packed = decode(counts, *mask.shape, packed=True, kernel=kernel)
    np.testing.assert_array_equal(packed, np.packbits(mask, axis=1))


@every_kernel
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (480, 640), (3000, 2000)])
@pytest.mark.parametrize("fill", ["empty", "full", "first", "last", "few", "sparse", "columns"])
def test_extremes_equal_pycocotools(shape, fill, kernel):
    mask = np.zeros(shape, np.uint8)
    if fill == "full":
        mask[:] = 1
    elif fill == "first":
        mask[0, 0] = 1
    elif fill == "last":
        mask[-1, -1] = 1
    elif fill == "few":  # counts of millions
        mask[shape[0] // 2, :: max(1, shape[1] // 4)] = 1
    elif fill == "sparse":  # long runs: counts of several characters, with large differences between them
        mask[np.random.default_rng(0).random(shape) < 1e-4] = 1
    elif fill == "columns":  # runs that go on from the bottom of a column to the top of the next
        mask[:, shape[1] // 3 : shape[1] // 2 + 1] = 1
    counts = kernel.encode(edges_of(mask), mask.size)
    assert counts == pycocotools_rle(mask)
    np.testing.assert_array_equal(decode(counts, *shape, kernel=kernel), mask)
    np.testing.assert_array_equal(decode(counts, *shape, packed=True, kernel=kernel), np.packbits(mask, axis=1))


@every_kernel
@pytest.mark.parametrize(
    "text", ["", "o", "\0", "\xff\xff", "ooooooooooooo0", "hello world", "05", "@", "`", "@@4", "1" * 17, "P" * 20]
)
def test_rejects_what_is_not_rle(text, kernel):
    with pytest.raises(InputError, match="not the COCO compressed RLE of a mask of 4 x 4 pixels"):
        decode(text.encode("latin-1"), 4, 4, kernel=kernel)


@every_kernel
def test_rejects_sizes_that_are_none(kernel):
    full = encode_mask(np.ones((4, 4)))
    for sides in ((-4, -4), (-1, -16), (0, 0), (0, 4), (4, 0), (4, -4)):
        for counts in (full, b"", b"0"):
            with pytest.raises(InputError, match="not the COCO compressed RLE of a mask of"):
                decode(counts, *sides, kernel=kernel)
            with pytest.raises(InputError, match="not the COCO compressed RLE of a mask of"):
                decode_into(np.zeros((4, 4), np.uint8), counts, *sides, kernel=kernel)


def rle_string(counts):
    """cocoapi's `rleToString`, for counts of any size."""
    string = ""
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            low, value = value & 31, value >> 5
            more = value != -1 if low & 16 else value != 0
            string += chr(48 + low + 32 * more)
    return string.encode()


@every_kernel
def test_rejects_counts_whose_sum_overflows(kernel):
    counts = [i // 2 << 33 for i in range(1 << 17)] + [(1 << 49) + 16]
    assert sum(counts) % (1 << 64) == 16
    with pytest.raises(InputError, match="of a mask of 4 x 4"):
        decode(rle_string(counts), 4, 4, kernel=kernel)


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text("0123456789PQRSTUVWXYZ`abcdefgh", max_size=12).map(str.encode))
def test_every_kernel_decodes_or_rejects_the_same_bytes(counts):
    masks = []
    for kernel in KERNELS:
        try:
            masks.append(decode(counts, 5, 6, kernel=kernel).tolist())
        except InputError:
            masks.append(None)
    assert masks.count(masks[0]) == len(masks)
    assert masks[0] is None or set(np.unique(masks[0])) <= {0, 1}


@every_kernel
@pytest.mark.parametrize("packed", [False, True])
def test_decodes_into_the_corner_of_a_larger_array(kernel, packed):
    mask = np.random.default_rng(1).integers(0, 2, (5, 11), np.uint8)
    pixels = np.zeros((2, 7, 16), np.uint8)
    decode_into(pixels[1], encode_mask(mask), 5, 11, packed=packed, kernel=kernel)
    expected = np.packbits(mask, axis=1) if packed else mask
    np.testing.assert_array_equal(pixels[1, :5, : expected.shape[1]], expected)
    assert pixels.sum(dtype=int) == expected.sum(dtype=int)
