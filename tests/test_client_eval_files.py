"""Where the files of a data set are, whatever machine wrote their names."""

import unicodedata

import pytest

from m2f_client.evaluation.fields import InvalidDataset
from m2f_client.evaluation.files import Finder, images_folder


@pytest.fixture
def folder(tmp_path):
    """A folder of images, with folders in it and names of all kinds."""
    images = tmp_path / "data" / "val"
    names = ("1.png", "left/1.png", "Left/2.png", "A b.png", "Fußgänger.png", "both.png", "BOTH.png", "IMG_2.JPG")
    for name in (*names, r"odd\name.png", "100%25.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()
    return images


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1.png", "1.png"),
        ("./1.png", "1.png"),
        (".//./1.png", "1.png"),
        ("val/1.png", "1.png"),
        (r"val\1.png", "1.png"),
        ("images/val/1.png", "1.png"),
        (r"images\val\1.png", "1.png"),
        ("/home/somebody/data/val/1.png", "1.png"),
        (r"C:\Users\me\data\val\1.png", "1.png"),
        (r"C:/Users/me/data\val/1.png", "1.png"),
        (r"..\..\val\1.png", "1.png"),
        ("../val/1.png", "1.png"),
        (r"\\server\share\1.png", "1.png"),
        ("http://example.com/images/1.png", "1.png"),
        ("left/1.png", "left/1.png"),
        (r"left\1.png", "left/1.png"),
        ("val/left/1.png", "left/1.png"),
        (r"D:\val\left\1.png", "left/1.png"),
        ("A%20b.png", "A b.png"),
        ("/data/upload/3/A%20b.png", "A b.png"),
        ("100%25.png", "100%25.png"),  # as it is, before it is read as a URL
        ("img_2.jpg", "IMG_2.JPG"),
        (r"VAL\Img_2.jpg", "IMG_2.JPG"),
        ("both.png", "both.png"),
        (r"x\BOTH.png", "BOTH.png"),
        (unicodedata.normalize("NFD", "Fußgänger.png"), "Fußgänger.png"),
        ("fu%C3%9Fg%C3%A4nger.png", "Fußgänger.png"),
        (r"odd\name.png", r"odd\name.png"),
        ("Both.png", None),  # two files have this name, but for upper and lower case
        ("2.png", None),
        ("val", None),
        ("left", None),
        ("1.png/", None),
        ("..", None),
        ("/", None),
        ("1.png\0", None),
        ("\ud800.png", None),
        ("a" * 300 + ".png", None),
        ("a/" * 3000 + "1.png", None),
        ("%", None),
    ],
)
def test_the_file_that_a_name_means(folder, name, expected):
    found = Finder(folder).find(name)
    if name == "1.png/":  # to a system that takes the slash for nothing, this is the file
        expected = None if found is None else "1.png"
    if name.startswith("../"):  # as it is written, from the folder of the images
        assert found.resolve() == folder / expected
    else:
        assert found == (None if expected is None else folder / expected)


def test_a_folder_that_exists_is_not_dropped(folder):
    """`left/3.png` is missing; it is not `3.png`."""
    (folder / "3.png").touch()
    assert Finder(folder).find("left/3.png") is None
    assert Finder(folder).find("LEFT/1.png") is None  # two folders have this name, but for upper and lower case
    assert Finder(folder).find("right/3.png") == folder / "3.png"
    assert Finder(folder).find("x/left/1.png") == folder / "left/1.png"


def test_a_folder_that_cannot_be_read_has_no_files(tmp_path):
    assert Finder(tmp_path / "nowhere").find("1.png") is None
    (tmp_path / "file").touch()
    assert Finder(tmp_path / "file").find("1.png") is None


@pytest.mark.parametrize("first", ["1.png", "val/1.png", r"val\1.png", r"images\val\1.png", "/elsewhere/1.png"])
def test_the_folder_of_the_images_is_found_by_any_of_these_names(folder, first):
    annotations = folder.parent / "annotations" / "instances_val.json"
    expected = folder.parent if first == "val/1.png" else folder
    assert images_folder(annotations, first) == expected


def test_the_name_as_it_is_written_counts_first(folder):
    """`val2/1.png` is in `data`, not `1.png` in `data/val`."""
    (folder.parent / "val2").mkdir()
    (folder.parent / "val2" / "1.png").touch()
    annotations = folder.parent / "annotations" / "instances_val.json"
    assert images_folder(annotations, "val2/1.png") == folder.parent
    with pytest.raises(InvalidDataset, match=r"\(val2.3\.png is in none of .*say where: --images DIR"):
        images_folder(annotations, r"val2\3.png")
