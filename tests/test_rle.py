import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from m2f.contract import InputError
from m2f.rle import decode, encode_mask

MASKS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))


def pycocotools_rle(mask):
    return coco.encode(np.asfortranarray(mask))["counts"]


@given(MASKS)
def test_equals_pycocotools_both_ways(mask):
    counts = encode_mask(mask)
    assert counts == pycocotools_rle(mask)
    np.testing.assert_array_equal(decode(counts, *mask.shape), mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (480, 640), (3000, 2000)])
@pytest.mark.parametrize("fill", ["empty", "full", "first", "last", "few", "sparse", "columns"])
def test_extremes_equal_pycocotools(shape, fill):
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
    counts = encode_mask(mask)
    assert counts == pycocotools_rle(mask)
    np.testing.assert_array_equal(decode(counts, *shape), mask)


@pytest.mark.parametrize("counts", [b"", b"o", b"\x00", b"\xff\xff", b"ooooooooooooo0", b"hello world", b"05"])
def test_rejects_what_is_not_rle(counts):
    with pytest.raises(InputError):
        decode(counts, 4, 4)


@given(st.binary(max_size=40))
def test_any_bytes_decode_or_are_rejected(counts):
    try:
        mask = decode(counts, 5, 6)
    except InputError:
        return
    assert mask.shape == (5, 6)
    assert set(np.unique(mask)) <= {0, 1}
