"""Random scenes that try to find a difference: (name, mask_logits [Q, h, w], img_shape, ori_shape)."""

import numpy as np

QUERIES = 4
STRIDE = 4


def smooth(rng, cells):
    """Blobs with slopes as a model makes them."""
    y, x = np.mgrid[: cells[0], : cells[1]]
    centres, radii = rng.uniform(0, 1, (QUERIES, 2)) * cells, rng.uniform(0.05, 0.6, QUERIES) * max(cells)
    distance = np.hypot(y - centres[:, :1, None], x - centres[:, 1:, None])
    return (radii[:, None, None] - distance) * rng.uniform(0.2, 3) + rng.normal(0, rng.uniform(0, 2), (QUERIES, *cells))


def noise(rng, cells):
    return rng.normal(rng.uniform(-2, 2), 1, (QUERIES, *cells)) * 10.0 ** rng.integers(-6, 7)


def checkered(rng, cells):
    """Neighbours of opposite sign: a zero crossing between any two."""
    sign = (-1.0) ** np.add.outer(np.arange(cells[0]), np.arange(cells[1]))
    return sign * rng.uniform(0.1, 5, (QUERIES, *cells))


def lonely(rng, cells):
    """A few positive cells in a negative plane."""
    logits = np.full((QUERIES, *cells), -rng.uniform(0, 5))
    logits[rng.random(logits.shape) < 0.02] = rng.uniform(0, 20)
    return logits


def ties(rng, cells):
    """Few numbers, whole or not: pixels that are 0 but for the rounding."""
    return rng.integers(-2, 3, (QUERIES, *cells)) * rng.choice([1, rng.uniform(0.1, 5)])


def empty_and_full(rng, cells):
    levels = rng.permutation([-3.0, 0.0, 1e-30, 4.0])
    return np.broadcast_to(levels[:, None, None], (QUERIES, *cells))


def halves(rng, cells):
    """What an engine in half precision answers: few values, many of them the same, and some too large for it."""
    with np.errstate(over="ignore"):
        return (smooth(rng, cells) * rng.choice([1, 1, 20000])).astype(np.float16)


def not_finite(rng, cells):
    logits = smooth(rng, cells)
    for value in (np.nan, np.inf, -np.inf):
        logits[rng.random(logits.shape) < 0.01] = value
    return logits


KINDS = (smooth, smooth, smooth, noise, checkered, lonely, ties, empty_and_full, halves, not_finite)


def sizes(rng):
    """Cells, valid part of the padded input, original image: any relation of the three, now and then extreme."""
    extent = rng.choice(["usual", "usual", "usual", "tiny", "wide", "tall"])
    longest, shortest = {"usual": (40, 40), "tiny": (3, 3), "wide": (120, 3), "tall": (120, 3)}[str(extent)]
    cells = [int(rng.integers(1, longest + 1)), int(rng.integers(1, shortest + 1))]
    if extent == "wide":
        cells.reverse()
    padded = [STRIDE * n for n in cells]
    valid = [n if rng.random() < 0.3 else int(rng.integers(max(1, n // 2), n + 1)) for n in padded]
    factor = rng.choice([1.0, rng.uniform(0.05, 1), rng.uniform(1, 4)])
    original = [max(1, round(n * factor)) for n in valid]
    if rng.random() < 0.05:
        original = [1, 1]
    if extent in ("wide", "tall") and rng.random() < 0.1:
        original[int(extent == "wide")] *= 10  # thousands of pixels
    return tuple(cells), tuple(valid), tuple(original)


def scenes(seed, count):
    """`count` scenes."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        cells, img_shape, ori_shape = sizes(rng)
        kind = KINDS[number % len(KINDS)]
        yield kind.__name__, np.ascontiguousarray(kind(rng, cells), np.float32), img_shape, ori_shape
