"""The overlay: where things are drawn, that labels stay inside and legible, and which way is up."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f_client import UnreadableImage
from m2f_client.converters.draw import Style, colour, open_upright, overlay, place_label, text_colour
from m2f_client.fake import result_of


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def square(height, width, y, x, side):
    mask = np.zeros((1, height, width), bool)
    mask[0, y : y + side, x : x + side] = True
    return mask


@pytest.mark.parametrize("size", [(1, 1), (160, 120), (31, 400), (1920, 1080)])
def test_overlay_keeps_the_size_and_the_input(size):
    image = Image.new("RGB", size, "grey")
    result = result_of(np.ones((3, size[1], size[0])))
    assert overlay(image, result, ["cat"]).size == size
    assert image.getcolors() == [(size[0] * size[1], (128, 128, 128))]


def test_mask_edge_and_inside_and_nothing_outside():
    result = result_of(square(300, 300, 100, 100, 100))
    pixels = np.asarray(overlay(Image.new("RGB", (300, 300)), result))
    assert tuple(pixels[150, 100]) == colour(0)  # edge
    assert tuple(pixels[150, 199]) == colour(0)
    assert pixels[150, 150] == pytest.approx(np.array(colour(0)) * 0.4, abs=1)  # translucent
    assert not pixels[150, 200:].any()
    assert not pixels[201:].any()


def test_no_instances_and_empty_masks_draw_nothing():
    image = Image.new("RGB", (40, 30))
    for masks in (np.zeros((0, 30, 40)), np.zeros((2, 30, 40))):
        assert not np.asarray(overlay(image, result_of(masks), ["cat", "dog"])).any()


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((0, 0, 2e9, 2e9), (0, 0, 60, 40)),
        ((-2e9, 10, np.inf, 30), (0, 10, 60, 30)),
        ((np.nan, np.nan, 30, 20), (0, 0, 30, 20)),
        ((np.nan,) * 4, (0, 0, 0, 0)),
        ((70, 50, 90, 60), (60, 40, 60, 40)),
    ],
)
def test_boxes_that_leave_the_picture_are_drawn_in_it(box, inside):
    """Pillow would draw what is outside, for seconds."""
    result = result_of(square(40, 60, 10, 20, 15))
    drawn = []
    for corners in (box, inside):
        result.outputs["boxes"][:] = corners
        drawn.append(np.asarray(overlay(Image.new("RGB", (60, 40)), result, ["cat"])))
    assert np.array_equal(*drawn)


def test_colour_by_class():
    masks = np.concatenate([square(300, 600, 50, 50, 100), square(300, 600, 50, 400, 100)])
    pixels = np.asarray(overlay(Image.new("RGB", (600, 300)), result_of(masks, labels=[3, 3]), colour_by="class"))
    assert tuple(pixels[100, 50]) == tuple(pixels[100, 400]) == colour(3)


def test_plot_takes_what_predict_takes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    result = result_of(square(60, 80, 10, 20, 30))
    expected = np.asarray(overlay(image, result, ["cat"]))
    for source in (image, pixels, encoded(image), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(result.plot(source, ["cat"]), expected)
    assert np.array_equal(np.asarray(image), pixels)
    with pytest.raises(UnreadableImage, match=r"missing\.png: No such file"):
        result.plot(tmp_path / "missing.png")


def test_size_that_the_server_did_not_see():
    with pytest.raises(UnreadableImage, match="opens as 5x4 here, the server saw 4x4"):
        overlay(Image.new("RGB", (5, 4)), result_of(np.ones((1, 4, 4))))


def test_colours_differ_and_labels_contrast():
    colours = [colour(i) for i in range(30)]
    assert len(set(colours)) == 30
    assert text_colour((255, 255, 0)) == (0, 0, 0)
    assert text_colour((0, 0, 200)) == (255, 255, 255)


def test_text_grows_with_the_image():
    sizes = [Style.for_size(w, h).font.size for w, h in [(160, 120), (1280, 720), (1920, 1080), (9000, 9000)]]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (10, 48)


coordinates = st.integers(0, 200)


@given(
    box=st.tuples(coordinates, coordinates, coordinates, coordinates),
    label=st.tuples(st.integers(1, 100), st.integers(1, 40)),
    taken=st.lists(st.just((0.0, 0.0, 100.0, 40.0)), max_size=1),
)
def test_labels_stay_inside(box, label, taken):
    x1, y1, x2, y2 = sorted(box[::2]) + sorted(box[1::2])
    left, top, right, bottom = place_label((x1, x2, y1, y2), label, (200, 200), taken)
    assert (right - left, bottom - top) == label
    assert left >= 0
    assert top >= 0
    assert right <= 200
    assert bottom <= 200


def test_a_second_label_does_not_cover_the_first():
    first = place_label((50, 50, 150, 150), (60, 12), (200, 200), [])
    second = place_label((50, 50, 150, 150), (60, 12), (200, 200), [first])
    assert first == (50, 38, 110, 50)  # on top of the box
    assert second == (50, 50, 110, 62)  # inside it


def test_a_label_for_which_there_is_no_room_is_left_out():
    masks = np.repeat(square(200, 200, 80, 80, 20), 300, axis=0)
    crowded = np.asarray(overlay(Image.new("RGB", (200, 200)), result_of(masks, labels=[0] * 300)))
    alone = np.asarray(overlay(Image.new("RGB", (200, 200)), result_of(masks[:1])))
    label = (alone[:80] == colour(0)).all(axis=2)  # that of the best instance stands above its box
    np.testing.assert_array_equal(crowded[:80][label], alone[:80][label])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    stored = Image.new("RGB", (6, 4))
    exif = stored.getexif()
    exif[0x112] = orientation
    upright = open_upright(encoded(stored, "JPEG", exif=exif))
    assert upright.size == ((6, 4) if orientation <= 4 else (4, 6))


@pytest.mark.parametrize("data", [b"", b"text", encoded(Image.new("RGB", (60, 60)))[:-40]])
def test_undecodable(data):
    with pytest.raises(UnreadableImage, match="cannot be drawn"):
        open_upright(data)
