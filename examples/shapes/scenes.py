"""Scenes of the shapes data set: pictures of overlapping objects, with the visible mask of each object.

``make_scene(rng)`` makes a scene; the other functions are its steps. All randomness comes from the
``numpy.random.Generator`` passed in.

Images are float32 ``[H, W, 3]`` in BGR order, 0..255, until ``finish`` makes them uint8; an alpha is
float32 ``[H, W]``, 0..1; points are float64 ``[N, 2]``, x then y, in pixels.
"""

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

CLASSES = ("circle", "square", "triangle", "star", "ring")
SUPERSAMPLE = 4
MIN_VISIBLE = 0.5  # share of an object's area; a placement that would hide more is rejected
MODEL_SIDE = 256  # sizes below are chosen for a model that sees the long side at this length
MIN_SIDE = 46 / MODEL_SIDE  # diameter of the smallest object, as a share of the long side
MIN_AREA = 450 / MODEL_SIDE**2  # of the smallest object, as a share of the long side squared
COIN_SCENES = 0.1


@dataclass(frozen=True)
class Shape:
    """One object to draw: its class, its outline (outer, then hole) and its alpha."""

    label: int
    centre: np.ndarray  # [2]
    radius: float
    alpha: np.ndarray  # [H, W]


# ---------------------------------------------------------------- textures


def noise_octaves(rng, size_hw, octaves=4, base=3):
    """Return the sum of smooth random fields, each twice as fine and half as strong: ``[H, W]``, about -1..1."""
    height, width = size_hw
    field = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = base * 2**octave
        coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        field += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return field / 1.5


def gradient(rng, size_hw):
    """Make a linear ramp in a random direction: ``[H, W]``, -1..1."""
    height, width = size_hw
    angle = rng.uniform(0, 2 * np.pi)
    ys, xs = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    ramp = np.cos(angle) * xs[None, :] + np.sin(angle) * ys[:, None]
    return (ramp / np.abs(ramp).max()).astype(np.float32)


def stripes(rng, size_hw, *, waviness=0.0):
    """Make parallel bands, bent by noise where ``waviness`` is set (wood): ``[H, W]``, -1..1."""
    count = rng.uniform(3, 14)
    phase = gradient(rng, size_hw) * count * np.pi
    if waviness:
        phase = phase + waviness * noise_octaves(rng, size_hw, 3)
    return np.sin(phase + rng.uniform(0, 6)).astype(np.float32)


def checks(rng, size_hw):
    """Make a soft checkerboard: ``[H, W]``, -1..1."""
    return np.tanh(3 * stripes(rng, size_hw) * stripes(rng, size_hw))


def texture(rng, size_hw):
    """Return a random pattern: ``[H, W]``, about -1..1."""
    kind = rng.integers(6)
    if kind == 0:
        return stripes(rng, size_hw)
    if kind == 1:
        return stripes(rng, size_hw, waviness=rng.uniform(2, 6))
    if kind == 2:
        return checks(rng, size_hw)
    if kind == 3:
        return gradient(rng, size_hw)
    return noise_octaves(rng, size_hw, int(rng.integers(2, 6)), int(rng.integers(2, 7)))


def random_colour(rng):
    """Return a BGR colour, float32 ``[3]``, in most cases muted."""
    hsv = np.array([[[rng.uniform(0, 180), 255 * rng.beta(1.6, 1.6), rng.uniform(40, 245)]]])
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def blurred_blobs(rng, image):
    """Add large out-of-focus patches of colour, as an unsharp photograph has."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    for _ in range(rng.integers(2, 7)):
        centre = (int(rng.integers(width // 4)), int(rng.integers(height // 4)))
        radius = int(rng.uniform(0.05, 0.3) * min(height, width) / 4) + 2
        cv2.circle(small, centre, radius, random_colour(rng).tolist(), -1)
    small = cv2.GaussianBlur(small, (0, 0), rng.uniform(0.06, 0.15) * min(height, width) / 4)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def background(rng, size_hw):
    """Paint a textured, unevenly lit ground: float32 ``[H, W, 3]``."""
    image = np.empty((*size_hw, 3), np.float32)
    image[:] = random_colour(rng)
    if rng.random() < 0.5:
        image = blurred_blobs(rng, image)
    second = (texture(rng, size_hw) + 1)[..., None] * rng.uniform(0.05, 0.3)
    image += second * (random_colour(rng) - image)
    image += (texture(rng, size_hw) * rng.uniform(4, 18))[..., None]
    image += (gradient(rng, size_hw) * rng.uniform(0, 35))[..., None]
    return np.clip(image, 0, 255)


def add_distractors(rng, image):
    """Draw thin lines, arcs, dots and text: marks that belong to no class."""
    height, width = image.shape[:2]
    for _ in range(rng.integers(0, 7)):
        colour = random_colour(rng).tolist()
        x, y = int(rng.integers(width)), int(rng.integers(height))
        kind = rng.integers(4)
        if kind == 0:
            end = (int(rng.integers(width)), int(rng.integers(height)))
            cv2.line(image, (x, y), end, colour, int(rng.integers(1, 4)), cv2.LINE_AA)
        elif kind == 1:
            word = "".join(rng.choice(list("abcdefghkmnrstuvwxyzABEFHKMNRTX147"), rng.integers(2, 8)))
            face, size, thickness = int(rng.integers(0, 8)), rng.uniform(0.4, 1.2), int(rng.integers(1, 3))
            cv2.putText(image, word, (x - 30, y), face, size, colour, thickness, cv2.LINE_AA)
        elif kind == 2:
            axes = (int(rng.uniform(0.1, 0.5) * width), int(rng.uniform(0.1, 0.5) * height))
            start, turn = rng.uniform(0, 360), rng.uniform(0, 180)
            end, thickness = start + rng.uniform(30, 120), int(rng.integers(1, 3))
            cv2.ellipse(image, (x, y), axes, turn, start, end, colour, thickness, cv2.LINE_AA)
        else:
            for dx, dy in rng.normal(0, 25, (rng.integers(3, 12), 2)):
                cv2.circle(image, (int(x + dx), int(y + dy)), int(rng.integers(1, 3)), colour, -1, cv2.LINE_AA)
    return image


# ---------------------------------------------------------------- outlines


def polar(radii, angles):
    """Return the points at the given radii and angles around the origin: ``[N, 2]``."""
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)


def outlines(rng, label):
    """Return the contours of an object of class ``label`` in a unit circle, unrotated: a list of ``[N, 2]``."""
    name = CLASSES[label]
    circle = polar(1.0, np.linspace(0, 2 * np.pi, 72, endpoint=False)) * (1.0, rng.uniform(0.88, 1.0))
    if name == "circle":
        return [circle]
    if name == "ring":
        return [circle, circle * rng.uniform(0.4, 0.62)]
    if name == "square":
        half = np.array([1.0, rng.uniform(0.6, 1.0)])
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
        return [corners / np.linalg.norm(half)]
    if name == "triangle":
        thirds = np.arange(3) * 2 * np.pi / 3
        return [polar(1.0, thirds + rng.uniform(-0.25, 0.25, 3))]
    tips = np.where(np.arange(10) % 2, rng.uniform(0.45, 0.6), 1.0)
    return [polar(tips, np.arange(10) * np.pi / 5)]


def rasterise(contours, size_hw):
    """Return the coverage of the contours' even-odd inside: float32 ``[H, W]``, 0..1.

    Only the bounding box is drawn, ``SUPERSAMPLE`` times finer, then averaged down.
    """
    alpha = np.zeros(size_hw, np.float32)
    everything = np.concatenate(contours)
    x1, y1 = np.maximum(np.floor(everything.min(0)).astype(int) - 1, 0)
    x2, y2 = np.minimum(np.ceil(everything.max(0)).astype(int) + 2, size_hw[::-1])
    if x2 <= x1 or y2 <= y1:
        return alpha
    fine = np.zeros(((y2 - y1) * SUPERSAMPLE, (x2 - x1) * SUPERSAMPLE), np.uint8)
    # A pixel's centre is at +0.5 here and at an integer in OpenCV; 4 fractional bits.
    points = [np.round(((c - (x1, y1)) * SUPERSAMPLE - 0.5) * 16).astype(np.int32) for c in contours]
    cv2.fillPoly(fine, points, 255, shift=4)
    coarse = cv2.resize(fine, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA)
    alpha[y1:y2, x1:x2] = coarse.astype(np.float32) / 255
    return alpha


def make_shape(rng, label, centre, radius, size_hw):
    """Make an object of class ``label`` at ``centre`` with a random rotation."""
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    contours = [c @ rotation.T * radius + centre for c in outlines(rng, label)]
    return Shape(label, np.asarray(centre), radius, rasterise(contours, size_hw))


# ---------------------------------------------------------------- layout


def place(shapes, masks, candidate):
    """Return the visible masks with ``candidate`` on top, its own last; None if it hides too much of another object.

    ``masks`` are the visible parts so far, bool ``[H, W]``.
    """
    inside = candidate.alpha > 0.5
    if inside.sum() < MIN_AREA * max(inside.shape) ** 2:
        return None
    remaining = [mask & ~inside for mask in masks]
    for shape, mask in zip(shapes, remaining, strict=True):
        if mask.sum() < MIN_VISIBLE * (shape.alpha > 0.5).sum():
            return None
    return [*remaining, inside]


def scatter(rng, size_hw):
    """Place objects of all classes at random places: shapes from back to front, and their visible masks."""
    height, width = size_hw
    short, long = min(size_hw), max(size_hw)
    smallest, largest = MIN_SIDE * long / 2, 0.65 * short / 2
    wanted = int(np.clip(rng.geometric(0.2), 1, 14))
    crowding = np.sqrt(max(wanted, 3) / 3)
    shapes, masks = [], []
    for _ in range(wanted * 3):
        top = max(smallest * 1.1, largest / crowding**0.6)
        radius = float(np.exp(rng.uniform(np.log(smallest), np.log(top))))
        margin = radius * 0.6  # an object may leave the picture a little
        centre = rng.uniform((margin, margin), (width - margin, height - margin))
        shape = make_shape(rng, int(rng.integers(len(CLASSES))), centre, radius, size_hw)
        placed = place(shapes, masks, shape)
        if placed is not None:
            shapes, masks = [*shapes, shape], placed
        if len(shapes) == wanted:
            break
    return shapes, masks


def coin_grid(rng, size_hw):
    """Place rows of at most 24 discs that hardly touch: shapes and visible masks."""
    height, width = size_hw
    across = int(rng.integers(2, 7))
    down = max(1, min(24 // across, round(across * height / width), 6))
    pitch = np.array([width / across, height / down])
    shapes, masks = [], []
    for row, column in np.ndindex(down, across):
        if rng.random() < 0.06:
            continue
        centre = (np.array([column, row]) + 0.5 + rng.uniform(-0.08, 0.08, 2)) * pitch
        radius = max(pitch.min() * rng.uniform(0.3, 0.47), 9 / MODEL_SIDE * max(size_hw))
        shape = make_shape(rng, 0, centre, radius, size_hw)
        placed = place(shapes, masks, shape)
        if placed is not None:
            shapes, masks = [*shapes, shape], placed
    return shapes, masks


# ---------------------------------------------------------------- painting


def shade(rng, shape, size_hw):
    """Return the light on a round body from one side: ``[H, W]``, about -1..1."""
    light = rng.uniform(0, 2 * np.pi)
    ys, xs = np.ogrid[: size_hw[0], : size_hw[1]]
    along = (xs + 0.5 - shape.centre[0]) * np.cos(light) + (ys + 0.5 - shape.centre[1]) * np.sin(light)
    return np.clip(along / shape.radius, -1, 1).astype(np.float32)


def fill(rng, shape, behind):
    """Return the colours for an object, ``[H, W, 3]``, that differ from the colour ``behind`` it ``[3]``."""
    size_hw = shape.alpha.shape
    colour = random_colour(rng)
    for _ in range(10):
        if np.abs(colour - behind).max() > 80:
            break
        colour = random_colour(rng)
    light = shade(rng, shape, size_hw) * rng.uniform(0, 35)
    if rng.random() < 0.6:
        light += texture(rng, size_hw) * rng.uniform(3, 18)
    return np.clip(colour + light[..., None], 0, 255)


def cast_shadow(rng, image, alpha, radius):
    """Darken the ground under an object, offset and blurred."""
    offset = rng.uniform(-0.18, 0.18, 2) * radius
    shift = np.array([[1, 0, offset[0]], [0, 1, offset[1]]], np.float32)
    moved = cv2.warpAffine(alpha, shift, alpha.shape[::-1])
    moved = cv2.GaussianBlur(moved, (0, 0), rng.uniform(0.06, 0.16) * radius + 0.5)
    return image * (1 - rng.uniform(0.2, 0.6) * moved[..., None])


def window(shape, size_hw, slack=0.5):
    """Return the slices of the part of the picture that an object and its shadow can touch."""
    reach = shape.radius * (1 + slack) + 4
    x1, y1 = np.maximum(np.floor(shape.centre - reach).astype(int), 0)
    x2, y2 = np.minimum(np.ceil(shape.centre + reach).astype(int), size_hw[::-1])
    return np.s_[y1:y2, x1:x2], np.array([x1, y1])


def paint(rng, image, shapes, filler, shadow_chance):
    """Draw the shapes from back to front with the colours that ``filler(rng, shape, behind)`` returns."""
    for shape in shapes:
        slices, origin = window(shape, image.shape[:2])
        local = Shape(shape.label, shape.centre - origin, shape.radius, shape.alpha[slices])
        patch = image[slices]
        if rng.random() < shadow_chance:
            patch = cast_shadow(rng, patch, local.alpha, local.radius)
        colours = filler(rng, local, patch.mean((0, 1)))
        patch = patch + local.alpha[..., None] * (colours - patch)
        if rng.random() < 0.15:  # a drawn border
            edge = cv2.morphologyEx(local.alpha, cv2.MORPH_GRADIENT, np.ones((3, 3))) * local.alpha
            patch = patch * (1 - rng.uniform(0.3, 0.8) * edge[..., None])
        image[slices] = patch
    return image


def coin_relief(rng, shape, behind, *, level):
    """Paint grey metal: a lit disc with a raised rim and a worn, noisy picture on it."""
    size_hw = shape.alpha.shape
    ys, xs = np.ogrid[: size_hw[0], : size_hw[1]]
    distance = np.hypot(xs + 0.5 - shape.centre[0], ys + 0.5 - shape.centre[1]) / shape.radius
    rim = np.exp(-(((distance - rng.uniform(0.82, 0.95)) / 0.07) ** 2)) * rng.uniform(-25, 35)
    relief = noise_octaves(rng, size_hw, 4, 4) * rng.uniform(10, 45)
    light = shade(rng, shape, size_hw) * rng.uniform(0, 30)
    grey = behind.mean() + level * rng.uniform(0.6, 1.3) + rim + light + relief
    return np.repeat(grey[..., None], 3, axis=2).astype(np.float32)


def coin_ground(rng, size_hw):
    """Paint a dark, grainy, unevenly lit table: ``[H, W, 3]``, all channels equal."""
    grey = rng.uniform(35, 95) + gradient(rng, size_hw) * rng.uniform(5, 45)
    grey = grey + noise_octaves(rng, size_hw, 5, 3) * rng.uniform(3, 14)
    return np.repeat(np.clip(grey, 5, 255)[..., None], 3, axis=2).astype(np.float32)


def finish(rng, image):
    """Add the effects of a camera: vignette, blur, sensor noise, sometimes no colour; return uint8."""
    height, width = image.shape[:2]
    if rng.random() < 0.4:
        ys, xs = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
        image = image * (1 - rng.uniform(0.05, 0.25) * (xs**2 + ys**2))[..., None].astype(np.float32)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.15:
        image = np.repeat(image.mean(2, keepdims=True), 3, axis=2)
    grain = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(0, 7)
    return np.clip(np.round(image + grain), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- scenes


def random_size(rng):
    """Return a height and width: sides 140..480, aspect ratio 0.5..2."""
    long = int(rng.integers(200, 481))
    short = int(np.clip(long * rng.uniform(0.5, 1.0), 140, long))
    return (short, long) if rng.random() < 0.55 else (long, short)


def make_scene(rng):
    """Return a picture, uint8 ``[H, W, 3]`` BGR, its labels, and the visible masks, bool ``[H, W]``."""
    size_hw = random_size(rng)
    if rng.random() < COIN_SCENES:
        shapes, masks = coin_grid(rng, size_hw)
        metal = partial(coin_relief, level=rng.uniform(35, 110))
        image = paint(rng, coin_ground(rng, size_hw), shapes, metal, rng.uniform(0, 1))
    else:
        shapes, masks = scatter(rng, size_hw)
        image = add_distractors(rng, background(rng, size_hw))
        image = paint(rng, image, shapes, fill, rng.choice([0, 0.5, 1]))
    return finish(rng, image), [shape.label for shape in shapes], masks
