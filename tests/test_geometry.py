import numpy as np
import pytest
from logits import SIZES
from reference import bilinear

from m2f.errors import InputError
from m2f.geometry import AxisGeometry, ImageGeometry, apply_rows, bilinear_taps, mask_taps, outputs_reading

ATOL = 1e-3  # coordinates are float32, as torch's: one unit in the last place at 1333 is 1e-4 of a pixel


@pytest.mark.parametrize(
    ("size_in", "size_out"), [(1, 1), (1, 9), (9, 1), (7, 7), (200, 800), (1333, 640), (640, 1333)]
)
def test_bilinear_taps_against_the_definition(size_in, size_out):
    values = np.random.default_rng(0).normal(size=(size_in, 1)).astype(np.float32)
    expected = bilinear(values, size_out, 1)
    np.testing.assert_allclose(apply_rows(values, bilinear_taps(size_in, size_out)), expected, atol=ATOL)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_mask_taps_are_upsample_crop_resize(name, axis):
    cells, valid, original = (size[axis] for size in SIZES[name])
    values = np.random.default_rng(1).normal(size=(cells, 1)).astype(np.float32)
    expected = bilinear(bilinear(values, cells * 4, 1)[:valid], original, 1)
    taps = mask_taps(AxisGeometry(cells, 4 * cells, valid, original))
    np.testing.assert_allclose(apply_rows(values, taps), expected, atol=ATOL)
    np.testing.assert_allclose(taps.weight.sum(axis=0), 1, atol=1e-6)
    assert (taps.source[0] == taps.source.min(axis=0)).all()
    assert (taps.source[-1] == taps.source.max(axis=0)).all()


@pytest.mark.parametrize("name", SIZES)
def test_outputs_reading_covers_exactly_the_outputs_with_a_tap_in_the_range(name):
    cells, valid, original = (size[0] for size in SIZES[name])
    taps = mask_taps(AxisGeometry(cells, 4 * cells, valid, original))
    for first in range(cells):
        for last in range(first, cells):
            begin, end = outputs_reading(taps, first, last)
            reads = ((taps.source[-1] >= first) & (taps.source[0] <= last)).nonzero()[0]
            assert list(range(begin, end)) == reads.tolist()


def test_the_geometry_of_an_image_is_that_of_its_axes():
    geometry = ImageGeometry.of((6, 8), img_shape=(11, 15), ori_shape=(50, 70), mask_stride=2)
    assert geometry.rows == AxisGeometry(cells=6, padded=12, valid=11, original=50)
    assert geometry.columns == AxisGeometry(cells=8, padded=16, valid=15, original=70)
    assert (geometry.cells, geometry.original) == ((6, 8), (50, 70))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_shape": (25, 32)}, r"img_shape \(25, 32\) must lie within 1 x 1 and the network input's \(24, 32\)"),
        ({"img_shape": (0, 32)}, "img_shape"),
        ({"ori_shape": (0, 5)}, r"ori_shape \(0, 5\) must lie within 1 x 1 and 65535 x 65535"),
        ({"ori_shape": (5, 65_536)}, "ori_shape"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(InputError, match=message):
        ImageGeometry.of((6, 8), **{"img_shape": (24, 32), "ori_shape": (9, 9), **change})
