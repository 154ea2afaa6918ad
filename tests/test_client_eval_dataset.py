"""Data sets that `m2f eval` reads: where their parts are, what is filled in, and what is refused."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coco_damage import damaged
from coco_data import row, uncompressed, write_scene
from faster_coco_eval import mask as coco_mask
from hypothesis import HealthCheck, given, settings

from m2f_client.evaluation import dataset
from m2f_client.evaluation.categories import by_index, by_name
from m2f_client.evaluation.dataset import Dataset, DatasetImage, read_instances, read_panoptic
from m2f_client.evaluation.evaluate import read_results
from m2f_client.evaluation.fields import InvalidDataset
from m2f_client.evaluation.files import annotation_file
from m2f_client.evaluation.precision import average_precision


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return folder, *write_scene(folder)


@pytest.fixture
def scene(written, tmp_path):
    """The data set in a folder of its own, its annotations and results."""
    folder, document, results = written
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path, document, results


def rewrite(folder, change):
    path = folder / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("categories"), "it has no list 'categories'"),
        (lambda d: d["images"].clear(), "has no images"),
        (lambda d: d["images"][2].pop("height"), r"images\[2\] has no valid 'height'"),
        (lambda d: d["images"][2].update(id=3), r"images\[2\] has the id of .*images\[0\]"),
        (lambda d: d["images"][2].update(file_name="away.png"), r"1 of the 12 images of .* are missing: .*away\.png"),
        (lambda d: d["annotations"][1].update(image_id=99), r"annotations\[1\] has the image_id 99"),
        (lambda d: d["annotations"][1].update(category_id=99), r"annotations\[1\] has the category_id 99"),
        (
            lambda d: d["annotations"][1].update(segmentation=[]),
            r"annotations\[1\] has no valid 'segmentation'.*mask AP",
        ),
        (
            lambda d: d["annotations"][1].update(segmentation="x"),
            r"annotations\[1\] has no valid 'segmentation': got 'x'; allowed",
        ),
        (lambda d: d["annotations"][1].update(segmentation={"size": [9, 9], "counts": [81]}), r"allowed: \[230, 300\]"),
        (
            lambda d: d.update(annotations=[{"image_id": 3, "segments_info": []}]),
            "panoptic annotations need --panoptic",
        ),
    ],
)
def test_a_data_set_that_cannot_be_used(scene, change, message):
    path = rewrite(scene[0], change)
    with pytest.raises(InvalidDataset, match=message):
        read_instances(path)


def one(**fields):
    """Change the second annotation, or one of its fields: one(area=None)."""
    return lambda d: d["annotations"][1].update(fields)


def polygons(*points):
    return one(segmentation=[list(points)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # polygons
        (polygons(10, 10, 1e9, 10, 10, 20), r"segmentation\[0\] has the coordinate 1e\+09; allowed: -131070 to 13"),
        (polygons(10, 10, -1e9, 10, 10, 20), "has the coordinate -1e"),
        (polygons(10, 10, 10**400, 10, 10, 20), "6 or more numbers"),
        (polygons(10, 10, float("nan"), 10, 10, 20), "has the coordinate nan"),
        (polygons(10, 10, float("inf"), 10, 10, 20), "has the coordinate inf"),
        (polygons(10, 10, None, 10, 10, 20), "6 or more numbers x1, y1, x2, y2, x3, y3, ..., an even count of them"),
        (polygons(10, 10, "x", 10, 10, 20), "6 or more numbers"),
        (polygons(10, 10, True, 10, 10, 20), "6 or more numbers"),
        (polygons(10, 10, 20, 10, 10), "6 or more numbers"),
        (polygons(10, 10, 20, 10, 10, 20, 30), "6 or more numbers"),
        (polygons(10, 10, 20, 20), "6 or more numbers"),
        (polygons(), "6 or more numbers"),
        (polygons([10, 10], [20, 10], [10, 20]), "6 or more numbers"),
        (one(segmentation=[10, 10, 20, 10, 10, 20]), r"segmentation\[0\] is 10; allowed: 6 or more"),
        (one(segmentation=[[10, 10, 20, 10, 10, 20], None]), r"segmentation\[1\] is None"),
        (one(segmentation=[[1, 1, 131070, 1, 1, 2] * 20]), "outlines of .* pixels; allowed are 4194304"),
        (one(segmentation=[[1, 1, 131070, 1, 1, 2]] * 20), "outlines of .* pixels; allowed are 4194304"),
        (one(segmentation=None), "it is absent or null; allowed: a list of polygons"),
        (one(segmentation=7), "got 7; allowed: a list of polygons"),
        (one(segmentation=True), "got True; allowed: a list of polygons"),
        # RLE
        (one(segmentation={"size": [230, 300]}), "'counts': it is absent"),
        (one(segmentation={"counts": [69000]}), "'size': it is absent"),
        (one(segmentation={"size": [300, 230], "counts": [69000]}), r"allowed: \[230, 300\]"),
        (one(segmentation={"size": 230, "counts": [69000]}), r"allowed: \[230, 300\]"),
        (one(segmentation={"size": ["230", "300"], "counts": [69000]}), r"allowed: \[230, 300\]"),
        (one(segmentation={"size": [230, 300], "counts": []}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": [69001]}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": [70000, -1000]}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": [2**32 + 69000]}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": [2**64, 69000]}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": [69000.0]}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": ["69000"]}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": [None]}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": "oooooooooooooooo0"}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": "1"}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": ""}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": "\u20ac"}), "RLE of 230 x 300 pixels"),
        (one(segmentation={"size": [230, 300], "counts": 69000}), "RLE of 230 x 300 pixels"),
        # other fields of an annotation
        (one(iscrowd=2), "no valid 'iscrowd': got 2; allowed: a whole number from 0 to 1"),
        (one(iscrowd="yes"), "no valid 'iscrowd': got 'yes'"),
        (one(iscrowd=[]), "no valid 'iscrowd'"),
        (one(area=-1), "no valid 'area': got -1; allowed: a number from 0 to 1e"),
        (one(area=float("nan")), "no valid 'area'"),
        (one(area="12"), "no valid 'area'"),
        (one(area=float("inf")), "no valid 'area'"),
        (one(bbox=[1, 2, 3]), r"no valid 'bbox': got \[1, 2, 3\]; allowed: \[x, y, width, height\]"),
        (one(bbox=[1, 2, -3, 4]), "no valid 'bbox'"),
        (one(bbox=[1, 2, float("nan"), 4]), "no valid 'bbox'"),
        (one(bbox=[1, 2, 1e300, 4]), "no valid 'bbox'"),
        (one(bbox=[1, 2, None, 4]), "no valid 'bbox'"),
        (one(bbox=["1", 2, 3, 4]), "no valid 'bbox'"),
        (one(bbox={"x": 1}), "no valid 'bbox'"),
        (one(bbox="1 2 3 4"), "no valid 'bbox'"),
        (one(image_id=None), "no valid 'image_id': it is absent or null"),
        (lambda d: d["annotations"][1].pop("image_id"), "no valid 'image_id': it is absent or null"),
        (one(image_id="three"), "no valid 'image_id': got 'three'; allowed: a whole number"),
        (one(image_id=3.5), "no valid 'image_id'"),
        (one(image_id=float("nan")), "no valid 'image_id'"),
        (one(category_id=None), "no valid 'category_id'"),
        (lambda d: d["annotations"][1].pop("category_id"), "no valid 'category_id'"),
        (one(category_id=[1]), "no valid 'category_id'"),
        (one(category_id=True), "no valid 'category_id'"),
        (lambda d: d["annotations"].__setitem__(1, None), r"annotations\[1\] is None; allowed: an object"),
        (lambda d: d["annotations"].__setitem__(1, []), r"annotations\[1\] is \[\]; allowed: an object"),
    ],
)  # fmt: skip
def test_an_annotation_that_cannot_be_used_is_named(scene, change, message):
    path = rewrite(scene[0], change)
    with pytest.raises(InvalidDataset, match=message) as error:
        read_instances(path)
    assert str(error.value).startswith(f"{path}: annotations[1]")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["images"][2].update(height=None), r"images\[2\] has no valid 'height'.* from 1 to 65535 \(id 5\)"),
        (lambda d: d["images"][2].update(height=0), r"images\[2\] has no valid 'height': got 0"),
        (lambda d: d["images"][2].update(width=-5), r"images\[2\] has no valid 'width'"),
        (lambda d: d["images"][2].update(width=1e9), r"images\[2\] has no valid 'width'"),
        (lambda d: d["images"][2].update(width=65535, height=65535), "has 65535 x 65535 pixels; allowed are 268435456"),
        (lambda d: d["images"][2].update(width="wide"), r"images\[2\] has no valid 'width'"),
        (lambda d: d["images"][2].update(id="5a"), r"images\[2\] has no valid 'id'"),
        (lambda d: d["images"][2].pop("id"), r"images\[2\] has no valid 'id'"),
        (lambda d: d["images"][2].update(file_name=None), r"images\[2\] has no valid 'file_name'"),
        (lambda d: d["images"][2].update(file_name=7), r"images\[2\] has no valid 'file_name'"),
        (lambda d: d["images"][2].update(file_name=""), r"images\[2\] has no valid 'file_name'"),
        (lambda d: d["images"][2].update(file_name="x/3.png"), r"images\[2\]: .* 'x/3.png' means .*'3.png' does"),
        (lambda d: d["images"][2].update(file_name="a" * 5000), "1 of the 12 images"),
        (lambda d: d["images"][2].update(file_name="3.png\0"), "1 of the 12 images"),
        (lambda d: d["images"].__setitem__(2, "3.png"), r"images\[2\] is '3.png'; allowed: an object"),
        (lambda d: d.update(images={}), "no list 'images'"),
        (lambda d: d.update(annotations=None), "no list 'annotations'"),
        (lambda d: d["categories"].clear(), "has no categories"),
        (lambda d: d["categories"][0].update(name=None), r"categories\[0\] has no valid 'name'.* allowed: text"),
        (lambda d: d["categories"][0].update(name=7), r"categories\[0\] has no valid 'name': got 7"),
        (lambda d: d["categories"][0].update(name=""), r"categories\[0\] has no valid 'name'"),
        (lambda d: d["categories"][0].update(id=1), r"categories\[1\] has the id of .*categories\[0\]"),
        (lambda d: d["categories"][0].update(id="1"), r"categories\[1\] has the id of .*categories\[0\]"),
        (lambda d: d["categories"][0].pop("id"), r"categories\[0\] has no valid 'id'"),
    ],
)  # fmt: skip
def test_an_image_or_a_category_that_cannot_be_used_is_named(scene, change, message):
    path = rewrite(scene[0], change)
    with pytest.raises(InvalidDataset, match=message) as error:
        read_instances(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 700


def test_nothing_is_drawn_that_could_take_much_memory(scene, monkeypatch):
    """The checks come first: drawing such polygons is what took gigabytes."""
    drawn = []
    monkeypatch.setattr(coco_mask, "segmToRle", lambda *arguments: drawn.append(arguments))
    for change in (
        polygons(10, 10, 1e9, 10, 10, 20),
        one(segmentation=[[1, 1, 131070, 1, 1, 2] * 20]),
        one(segmentation={"size": [10**6, 10**6], "counts": [10**12]}),
    ):
        document = json.loads(json.dumps(scene[1]))
        document["annotations"] = document["annotations"][1:2] * 2
        change(document)
        (scene[0] / "annotations" / "instances_val.json").write_text(json.dumps(document))
        with pytest.raises(InvalidDataset):
            read_instances(scene[0])
    assert drawn == []


def test_the_masks_of_a_data_set_are_bounded_together(scene, monkeypatch):
    monkeypatch.setattr(dataset, "MAX_RLE_BYTES", 1000)
    with pytest.raises(
        InvalidDataset, match=r"annotations\[\d+\]: the masks up to here take .* as RLE; allowed are 1000"
    ):
        read_instances(scene[0])


READ = """
import resource, sys
from pathlib import Path
from m2f_client.evaluation.dataset import read_instances
from m2f_client.evaluation.fields import InvalidDataset

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

before = most()
try:
    read_instances(Path(sys.argv[1]))
except InvalidDataset as error:
    print(error)
print(most() - before)
"""


def zigzag():
    """Outlines of nearly the longest length that is allowed."""
    height = 100_000
    corners = [[x % 300, height * (x % 2)] for x in range(41)]
    return polygons(*(side for corner in corners for side in corner))


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("change", "megabytes"),
    [
        (polygons(10, 10, 1e9, 10, 10, 20), 20),  # gigabytes, if it was drawn
        (zigzag(), 200),
        (one(segmentation={"size": [230, 300], "counts": [2**40, 0] * 2**20}), 200),
        (one(segmentation={"size": [230, 300], "counts": "00" * 2**21}), 350),
    ],
    ids=["coordinate", "outline", "lengths", "RLE"],
)
def test_the_memory_of_an_object_is_bounded(scene, change, megabytes):
    path = rewrite(scene[0], change)
    ran = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True)
    *_, most = ran.stdout.split()
    assert int(most) < megabytes, ran.stdout


def as_written(change):
    """A change of the file that changes no figure."""
    return pytest.param(change, id=change.__name__)


def nulls(document):
    for annotation in document["annotations"]:
        annotation.update(area=None, bbox=None, id=None, attributes=None)
        annotation["iscrowd"] = annotation["iscrowd"] or None


def text_numbers(document):
    for image in document["images"]:
        image.update({name: str(image[name]) for name in ("id", "height", "width")})
    for annotation in document["annotations"]:
        annotation.update({name: str(annotation[name]) for name in ("id", "image_id", "category_id", "iscrowd")})
    for category in document["categories"]:
        category["id"] = str(category["id"])


def float_numbers(document):
    for annotation in document["annotations"]:
        annotation.update({name: float(annotation[name]) for name in ("id", "image_id", "category_id", "iscrowd")})
        annotation["iscrowd"] = bool(annotation["iscrowd"])


def annotations_of_one_id(document):
    for annotation in document["annotations"]:
        annotation["id"] = 1


def lengths_not_text(document):
    for annotation in document["annotations"]:
        if isinstance(annotation["segmentation"], dict):
            annotation["segmentation"] = uncompressed(annotation["segmentation"])


def windows_names(document):
    for image in document["images"]:
        image["file_name"] = "C:\\data\\val\\" + image["file_name"]


def own_folder_in_front(document):
    for image in document["images"]:
        image["file_name"] = "val/" + image["file_name"]


def other_case(document):
    for image in document["images"]:
        image["file_name"] = "./" + image["file_name"].upper()


def root_category(document):
    """As Roboflow writes it: nothing is of this category, whose name a real one has."""
    document["categories"].insert(0, {"id": 0, "name": "disc", "supercategory": "none"})


def far_outside(document):
    """Polygons are cut off at the edges of the image, as pycocotools does."""
    for annotation in document["annotations"]:
        if isinstance(annotation["segmentation"], list):
            annotation["segmentation"].append([-90000, -90000, -80000, -90000, -80000, -80000.5])


ALIKE = [
    nulls, text_numbers, float_numbers, annotations_of_one_id, lengths_not_text, windows_names, own_folder_in_front,
    other_case, root_category, far_outside,
]  # fmt: skip


@pytest.mark.parametrize("change", [as_written(change) for change in ALIKE])
def test_what_other_tools_write_is_the_same_data_set(scene, change):
    folder, _, results = scene
    for_masks = change in (nulls, lengths_not_text)  # the area of a polygon is not that of its mask
    before = read_instances(folder)
    after = read_instances(rewrite(folder, change))
    assert [image.path for image in after.images] == [image.path for image in before.images]
    assert after.categories == before.categories
    assert objects_of(after) == objects_of(before)
    image_ids = [image.id for image in before.images]
    figures = [average_precision(each, results, image_ids, "segm").figures for each in (before, after)]
    assert figures[0]["AP50"] == figures[1]["AP50"]
    assert for_masks or figures[0] == figures[1]


@pytest.mark.parametrize("shift", [-100, 2**31, 2**53, 2**63, 2**70])
def test_ids_may_be_any_whole_numbers(scene, shift):
    folder, _, results = scene
    before = average_precision(read_instances(folder), results, [*range(3, 15)], "segm").figures

    def move(document):
        for image in document["images"]:
            image["id"] += shift
        for annotation in document["annotations"]:
            annotation["image_id"] += shift
            annotation["category_id"] -= shift
        for category in document["categories"]:
            category["id"] -= shift

    moved = [{**r, "image_id": r["image_id"] + shift, "category_id": r["category_id"] - shift} for r in results]
    data = read_instances(rewrite(folder, move))
    assert average_precision(data, moved, [image.id for image in data.images], "segm").figures == before


def objects_of(data):
    return [
        (a["image_id"], a["category_id"], a["iscrowd"], bytes(a["segmentation"]["counts"])) for a in data.annotations
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be"])
def test_an_annotation_file_in_another_encoding(scene, encoding):
    path = scene[0] / "annotations" / "instances_val.json"
    before = read_instances(path)
    path.write_text(path.read_text(), encoding=encoding)
    assert read_instances(path) == before


def categories(*names, used=()):
    """A data set of categories with the ids 0, 1, ... and an object of each id in `used`."""
    objects = tuple({"category_id": number, "image_id": 1, "iscrowd": 0} for number in used)
    rows = tuple({"id": number, "name": name} for number, name in enumerate(names))
    return Dataset(Path("data.json"), (DatasetImage(1, Path("1.png"), (10, 10)),), rows, objects)


@pytest.mark.parametrize(
    ("data", "class_names", "expected"),
    [
        (categories("cat", "dog", used=[0, 1]), ("dog", "cat"), (1, 0)),
        (categories("Cat", " dog", used=[0, 1]), ("dog ", "cat"), (1, 0)),
        (categories("cat", "Cat", used=[0, 1]), ("Cat", "cat"), (1, 0)),
        (categories("cat", "Cat", used=[0, 1]), ("Cat",), (1,)),
        (categories("Cat", "cat", used=[1]), ("CAT",), (1,)),  # the one with objects
        (categories("shapes", "Shapes", used=[1]), ("shapes",), (1,)),
        (categories("cat", "Cat", used=[1]), ("cat", "Cat"), (0, 1)),  # each has a class of its own
        (categories("caf\u00e9", used=[0]), ("cafe\u0301",), (0,)),
        (categories("STRASSE", used=[0]), ("straße",), (0,)),
        (categories("a, b", "a", "7", used=[0, 1, 2]), ("7", "a, b", "b"), (2, 0, None)),
        (categories("cat", used=[0]), ("cat", "cat"), (0, 0)),
    ],
)
def test_the_category_of_each_class(data, class_names, expected):
    assert by_name(class_names, data).ids == expected


def test_categories_of_one_name_that_both_have_objects():
    data = categories("cat", "cat", "dog", used=[0, 1, 2])
    with pytest.raises(
        InvalidDataset, match=r"data.json: .* ids 0, 1 have objects and the name of class 'cat'; allowed: "
    ):
        by_name(("dog", "cat"), data)
    assert by_name(("dog",), data).warnings() == [
        "categories that the model does not know, counted as missed: cat, cat"
    ]


def test_classes_in_the_order_of_the_categories():
    data = categories("root", "cat", "dog", used=[1, 2])
    assert by_index(None, data).ids == by_index(("cat", "dog"), data).ids == (0, 1, 2)
    assert by_index(("a", "b", "c"), data).warnings() == by_index(None, data).warnings() == []
    assert by_index(("cat", "dog"), data).warnings() == ["2 classes are matched in order with 3 categories"]


def test_files_that_are_no_data_set(scene):
    folder, _, results = scene
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "broken.json").write_text("{")
    for name, message in (
        ("results.json", "is a list, as COCO results are"),
        ("broken.json", "not JSON"),
        ("no.json", "No such"),
    ):
        with pytest.raises(InvalidDataset, match=message):
            read_instances(folder / name)


@pytest.mark.parametrize("images", ["val", "images/val", "images", ".", "annotations/images", "annotations"])
def test_images_are_found_where_data_sets_have_them(scene, images):
    folder = scene[0]
    (folder / "val").rename(folder / "moved")
    (folder / images).mkdir(parents=True, exist_ok=True)
    for file in (folder / "moved").iterdir():
        file.rename(folder / images / file.name)
    assert len(read_instances(folder).images) == 12
    assert read_instances(folder, folder / images) == read_instances(folder)


def test_images_that_are_nowhere(scene):
    (scene[0] / "val").rename(scene[0] / "moved")
    with pytest.raises(InvalidDataset, match=r"3\.png is in none of .*val.*; say where: --images DIR"):
        read_instances(scene[0])
    assert len(read_instances(scene[0], scene[0] / "moved").images) == 12


@pytest.mark.parametrize("images", [".", "images"])
def test_an_annotation_file_beside_its_images(scene, images):
    """As Roboflow and Label Studio export them."""
    folder = scene[0] / "valid"
    before = read_instances(scene[0])
    (folder / images).mkdir(parents=True)
    for file in (scene[0] / "val").iterdir():
        file.rename(folder / images / file.name)
    (scene[0] / "annotations" / "instances_val.json").rename(folder / "_annotations.coco.json")
    after = read_instances(folder)
    assert after.annotations == before.annotations
    assert after.images[0].path == folder / images / "3.png"


def test_the_annotations_of_a_folder(scene):
    folder = scene[0]
    wanted = folder / "annotations" / "instances_val.json"
    for other in ("panoptic_val.json", "captions_val.json", "instances_train.json"):
        (folder / "annotations" / other).write_text("{}")
    assert annotation_file(folder, "instances") == wanted
    assert annotation_file(folder, "panoptic").name == "panoptic_val.json"
    (folder / "annotations" / "instances_val2.json").write_text("{}")
    with pytest.raises(InvalidDataset, match="several annotation files"):
        annotation_file(folder, "instances")
    with pytest.raises(InvalidDataset, match="no annotations"):
        annotation_file(folder / "val", "instances")


def test_what_an_annotation_lacks_is_made_of_its_mask(scene):
    folder, document, _ = scene
    before = read_instances(folder)

    def forget(document):
        for annotation in document["annotations"]:
            for name in ("area", "bbox", "iscrowd", "id"):
                del annotation[name]

    after = read_instances(rewrite(folder, forget))
    for one, other, source in zip(before.annotations, after.annotations, document["annotations"], strict=True):
        assert isinstance(other["area"], float)
        assert other["iscrowd"] == 0
        if isinstance(source["segmentation"], dict):
            assert (one["area"], one["bbox"]) == (other["area"], other["bbox"])


def test_categories_by_name(scene):
    data = read_instances(scene[0])
    matched = by_name(("DISC", "ghost"), data)
    assert matched.ids == (1, None)
    assert matched.warnings() == [
        "classes not in the data set, left out: ghost",
        "categories that the model does not know, counted as missed: Square ",
    ]
    with pytest.raises(
        InvalidDataset, match=r"no class of the model \(a, b\) is a category .*\(disc, Square , unused\)"
    ):
        by_name(("a", "b"), data)
    with pytest.raises(InvalidDataset, match="--by-index"):
        by_name(None, data)
    with pytest.raises(InvalidDataset, match="found class 7"):
        matched[7]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"images": []}, "not a list of COCO results"),
        ([{"image_id": 3}], r"\[0\] has no valid 'category_id'"),
        ([row(1, 1, 1) | {"image_id": 99}], "has the image_id 99, which"),
        ([row(1, 1, 1) | {"image_id": 3}], r"has no valid 'size': got \[60, 80\]"),
        *(
            (
                [{"image_id": 3, "category_id": 1, "score": 1, "segmentation": {"size": [230, 300]} | counts}],
                "has no valid 'counts'.*compressed text$",
            )
            for counts in ({"counts": "P"}, {"counts": "nonsense"}, {"counts": [69000]}, {})
        ),
    ],
)
def test_saved_results_that_cannot_be_used(scene, tmp_path, results, message):
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(InvalidDataset, match=message):
        read_results(tmp_path / "results.json", read_instances(scene[0]))


def read_damaged(document, folder, read, score):
    """Read a damaged document, and score what is accepted; return the error."""
    path = folder / "annotations" / f"{read.__name__}.json"
    path.write_text(json.dumps(document))
    try:
        data = read(path, folder / "val")
    except InvalidDataset as error:
        assert str(path) in str(error)  # noqa: PT017
        assert len(str(error)) < 2500  # noqa: PT017
        return
    score(data)


def score_instances(data):
    image_ids = [image.id for image in data.images]
    rows = [{**annotation, "score": 0.5} for annotation in data.annotations]
    for kind in ("segm", "bbox"):
        figures = average_precision(data, rows, image_ids, kind).figures
        assert all(figure is None or 0 <= figure <= 1 for figure in figures.values())
    with contextlib.suppress(InvalidDataset):  # its own message
        by_name(("disc", "square"), data).warnings()


def check_damage(written, examples, make, read, score):
    folder, document, _ = written
    small = make(json.loads(json.dumps(document)))

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(damaged(small))
    def check(changed):
        read_damaged(changed, folder, read, score)

    check()


def few_instances(document):
    document["annotations"] = document["annotations"][:12]
    document["images"] = document["images"][:4]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    return document


def panoptic_of(document):
    annotations = [
        {
            "image_id": image["id"],
            "file_name": image["file_name"],
            "segments_info": [{"id": 1, "category_id": 1, "iscrowd": 0}],
        }
        for image in document["images"][:3]
    ]
    categories = [{**category, "isthing": 1} for category in document["categories"]]
    return {"images": document["images"][:3], "annotations": annotations, "categories": categories}


def score_panoptic(data):
    assert set(data.maps) == {image.id for image in data.images}
    assert all(png.is_file() for png in data.maps.values())
    assert sum(data.objects(data.maps).values()) <= len(data.annotations)


@pytest.mark.parametrize("examples", [100, pytest.param(10_000, marks=pytest.mark.chaos)])
def test_a_damaged_data_set_is_read_or_refused(written, examples):
    check_damage(written, examples, few_instances, read_instances, score_instances)


@pytest.mark.parametrize("examples", [60, pytest.param(10_000, marks=pytest.mark.chaos)])
def test_a_damaged_panoptic_data_set_is_read_or_refused(written, examples):
    maps = written[0] / "annotations" / "read_panoptic"
    if not maps.exists():
        shutil.copytree(written[0] / "val", maps)
    check_damage(written, examples, panoptic_of, read_panoptic, score_panoptic)


@pytest.mark.parametrize("examples", [100, pytest.param(10_000, marks=pytest.mark.chaos)])
def test_damaged_results_are_read_or_refused(written, examples):
    folder, _, results = written
    data = read_instances(folder / "annotations" / "instances_val.json")

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(damaged(results[:5]))
    def check(changed):
        path = folder / "results.json"
        path.write_text(json.dumps(changed))
        try:
            rows = read_results(path, data)
        except InvalidDataset as error:
            assert str(path) in str(error)  # noqa: PT017
            return
        figures = average_precision(data, [row for each in rows.values() for row in each], rows, "segm").figures
        assert 0 <= figures["AP"] <= 1

    check()
