"""Single pixels against PyTorch, bit for bit, and that no sign differs where none is in doubt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import KINDS, sizes

from m2f.geometry import AxisGeometry, apply_rows, mask_taps
from m2f.interpolate import Stages, doubtful, pixels, rounding

INF, NAN = np.inf, np.nan


def scene(seed):
    """Logits [Q, h, w] of a random kind, and the sizes of both axes; one in three has nothing to upsample."""
    rng = np.random.default_rng(seed)
    cells, valid, original = sizes(rng)
    stride = rng.choice([1, 2, 4])
    logits = np.ascontiguousarray(KINDS[seed % len(KINDS)](rng, cells), np.float32)
    axes = [
        AxisGeometry(cells=c, padded=int(stride) * c, valid=min(v, int(stride) * c), original=o)
        for c, v, o in zip(cells, valid, original, strict=True)
    ]
    return logits, axes


def all_pixels(logits, axes):
    y, x = np.indices([axis.original for axis in axes]).reshape(2, -1)
    with np.errstate(all="ignore"):
        return pixels(logits, *map(Stages.of, axes), y, x)


@pytest.mark.torch
def test_pixels_are_those_of_pytorch():
    import torch
    from torch.nn.functional import interpolate

    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("PyTorch rounds in another order on this processor")
    for seed in range(30):
        logits, axes = scene(seed)
        _, padded, valid, original = zip(*axes, strict=True)
        upsampled = interpolate(torch.from_numpy(logits)[None], padded, mode="bilinear")[0]
        resized = interpolate(upsampled[:, None, : valid[0], : valid[1]], original, mode="bilinear")[:, 0].numpy()
        for query, want in zip(logits, resized, strict=True):
            np.testing.assert_array_equal(all_pixels(query, axes), want.reshape(-1), err_msg=str((seed, axes)))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_sign_differs_where_none_is_in_doubt(seed):
    logits, axes = scene(seed)
    for query in logits:
        with np.errstate(all="ignore"):
            tall = apply_rows(query, mask_taps(axes[0]))
            composed = apply_rows(np.ascontiguousarray(tall.T), mask_taps(axes[1])).T.reshape(-1)
        differ = (all_pixels(query, axes) > 0) != (composed > 0)
        assert doubtful(composed[differ], rounding(query)).all()


@pytest.mark.parametrize(
    ("value", "doubt"),
    [
        (0.0, True),
        (1e-3, True),
        (-1e-3, True),
        (2e-3, False),
        (-2e-3, False),
        (INF, True),  # a weight of 0 that the taps do not have would make it NaN
        (-INF, False),
        (NAN, False),
    ],
)
def test_what_is_in_doubt(value, doubt):
    assert doubtful(np.array([value], np.float32), np.float32(1e-3)).tolist() == [doubt]


@pytest.mark.parametrize(
    ("logits", "largest"),
    [([-9, 4], 4), ([-9, -4], 0), ([INF, 4, -INF, NAN], 4), ([NAN, NAN], 0), ([64, 4], 64)],
)
def test_the_doubt_is_in_proportion_to_the_largest_logit(logits, largest):
    assert rounding(np.array([logits], np.float32)) == pytest.approx(largest / 2**18, abs=1e-37, rel=1e-6)
