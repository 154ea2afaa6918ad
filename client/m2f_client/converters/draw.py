"""A picture of a result: translucent masks with outlines, boxes, and labels inside the image, apart from each other.

Where there is no room, instances have no label: of ten thousand instances the picture would show nothing else.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from m2f.errors import InputError
from m2f.image import decode_image
from m2f_client.client_errors import UnreadableImage
from m2f_client.converters.result_like import ResultLike

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]
Pixels = npt.NDArray[np.uint8]

_GOLDEN_RATIO = 0.618033988749895
_MASK_OPACITY = 0.4
_NO_LIMIT = 2**31  # pixels; the server has already accepted the image
_FIRST_HUE = 0.58
_MOST_COVERED = 0.5  # part of a label


@dataclass(frozen=True)
class Style:
    """Sizes in pixels for one image size.

    Attributes:
        font: font of the labels.
        outline: width of a mask's edge.
        box: width of a box's line.
        padding: distance between a label's text and its edge.
    """

    font: Any
    outline: int
    box: int
    padding: int

    @classmethod
    def for_size(cls, width: int, height: int) -> Style:
        """Return the sizes for an image: text of 2.2 % of its mean side, 10 to 48 pixels."""
        side = (width * height) ** 0.5
        text = min(max(round(0.022 * side), 10), 48)
        return cls(
            font=ImageFont.load_default(text),
            outline=max(1, round(side / 320)),
            box=max(1, round(side / 640)),
            padding=max(1, round(text / 5)),
        )


def open_upright(data: bytes) -> Image.Image:
    """Decode an image exactly as the server does: RGB, with the EXIF orientation applied.

    Raises:
        UnreadableImage: the image cannot be decoded.
    """
    try:
        return Image.fromarray(decode_image(data, max_pixels=_NO_LIMIT))
    except InputError as error:
        raise UnreadableImage(f"cannot be drawn: {error}") from error


def overlay(
    image: Image.Image,
    result: ResultLike,
    class_names: Sequence[str] | None = None,
    *,
    colour_by: Literal["instance", "class"] = "instance",
    style: Style | None = None,
) -> Image.Image:
    """Return a copy of an image with its instances drawn on it.

    Args:
        image: upright RGB image (see `open_upright`), of the result's size.
        result: needs `scores`, `labels`, `boxes`, `rle` (or `masks`) and `size`.
        class_names: the model's class names; None: class numbers.
        colour_by: whether each instance or each class has its own colour.
        style: sizes of text and lines; None: those that fit the size of the image.

    Raises:
        UnreadableImage: the image has another size than the server reports.
    """
    height, width = result.size
    if image.size != (width, height):
        raise UnreadableImage(f"opens as {image.width}x{image.height} here, the server saw {width}x{height}")
    style = style or Style.for_size(width, height)
    keys = range(len(result)) if colour_by == "instance" else result.labels.tolist()
    colours = [colour(key) for key in keys]
    boxes = np.nan_to_num(result.boxes).clip(0, (width, height) * 2)  # Pillow takes seconds to draw far outside
    sides = boxes[:, 2:] - boxes[:, :2]  # [K, 2]
    big_first = np.argsort(-sides.prod(axis=1), kind="stable")

    pixels = np.array(image)  # [H, W, 3]
    for index in big_first:  # small masks on top
        x, y, mask = result.crop(index)
        _paint_mask(pixels[y:, x:], mask, colours[index], style.outline)
    canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    for index in big_first:
        _draw_box(draw, boxes[index].tolist(), colours[index], style.box)
    texts = [f"{n} {s:.2f}" for n, s in zip(result.names(class_names), result.scores, strict=True)]
    _draw_labels(draw, texts, boxes.tolist(), colours, style)
    return canvas


def colour(index: int) -> Colour:
    """Return a distinct, bright colour for a number: hues a golden angle apart, lightness in three steps."""
    hue = (_FIRST_HUE + index * _GOLDEN_RATIO) % 1.0
    lightness = (0.55, 0.45, 0.66)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(background: Colour) -> Colour:
    """Return black or white, whichever contrasts more (WCAG 2 relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _paint_mask(pixels: Pixels, mask: Pixels, paint: Colour, line: int) -> None:
    """Blend a mask [h, w] into the first rows and columns of pixels [H, W, 3] and draw its edge, in place."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = mask[window].astype(bool)
    view = pixels[window]
    view[inside] = ((1 - _MASK_OPACITY) * view[inside] + _MASK_OPACITY * np.array(paint)).round().astype(np.uint8)
    view[inside & ~_eroded(inside, line)] = paint


def _eroded(mask: npt.NDArray[np.bool_], steps: int) -> npt.NDArray[np.bool_]:
    """Return a mask without `steps` pixels along its edge; the border of the array counts as outside."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float], paint: Colour, line: int) -> None:
    x1, y1, x2, y2 = box
    if not _is_empty(box):
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=paint, width=line)  # Pillow's corners are inclusive


def _is_empty(box: Sequence[float]) -> bool:
    return box[2] <= box[0] or box[3] <= box[1]


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    texts: Sequence[str],
    boxes: Sequence[Sequence[float]],
    colours: Sequence[Colour],
    style: Style,
) -> None:
    """Draw the labels, best instance first: the best instance gets the best place.

    A label that would cover others with half of its area or more is left out.
    """
    taken = np.empty((len(texts), 4))
    placed = 0
    for text, box, paint in zip(texts, boxes, colours, strict=True):
        if _is_empty(box):
            continue  # an instance without a mask gets no label
        left, top, right, bottom = draw.textbbox((0, 0), text, font=style.font)
        size = (right - left + 2 * style.padding, bottom - top + 2 * style.padding)
        place = place_label(box, size, draw.im.size, taken[:placed])
        if _overlaps([place], taken[:placed])[0] >= _MOST_COVERED * size[0] * size[1]:
            continue
        taken[placed] = place
        placed += 1
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=paint)
        origin = (place[0] + style.padding - left, place[1] + style.padding - top)
        draw.text(origin, text, font=style.font, fill=text_colour(paint))


def place_label(
    box: Sequence[float], label: tuple[float, float], image: tuple[int, int], taken: npt.ArrayLike
) -> Rectangle:
    """Return the place of a label: at its box, inside the image, with the least overlap with other labels.

    Args:
        box: x1 y1 x2 y2.
        label: width and height of the label.
        image: width and height of the image.
        taken: [N, 4], rectangles of the labels placed before.
    """
    x1, y1, x2, y2 = box
    width, height = label
    corners = [
        (x1, y1 - height),  # above the box, then inside, then below
        (x1, y1),
        (x1, y2),
        (x1, y2 - height),
        (x2 - width, y1 - height),
        (x2 - width, y1),
        (x2 - width, y2),
        (x2 - width, y2 - height),
        ((x1 + x2 - width) / 2, (y1 + y2 - height) / 2),
    ]
    places = []
    for left, top in corners:
        left_inside = max(0.0, min(left, image[0] - width))
        top_inside = max(0.0, min(top, image[1] - height))
        places.append((left_inside, top_inside, left_inside + width, top_inside + height))
    return places[int(_overlaps(places, taken).argmin())]


def _overlaps(places: Sequence[Rectangle], taken: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return the area of each place that lies on taken rectangles; an area counts for each of them."""
    x1, y1, x2, y2 = np.array(places).T[:, :, None]  # [4, P, 1]
    left, top, right, bottom = np.reshape(taken, (-1, 4)).T  # [4, N]
    widths = np.minimum(x2, right) - np.maximum(x1, left)  # [P, N]
    heights = np.minimum(y2, bottom) - np.maximum(y1, top)
    return (widths.clip(0) * heights.clip(0)).sum(axis=1)
