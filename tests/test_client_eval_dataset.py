"""Data sets that `m2f eval` reads: where their parts are, what is filled in, and what is refused."""

import json

import pytest
from coco_data import row, write_scene

from m2f_client.evaluation.categories import by_name
from m2f_client.evaluation.dataset import read_instances
from m2f_client.evaluation.evaluate import read_results
from m2f_client.evaluation.fields import InvalidDataset
from m2f_client.evaluation.files import annotation_file


@pytest.fixture
def scene(tmp_path):
    return tmp_path, *write_scene(tmp_path)


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
    dataset = read_instances(scene[0])
    matched = by_name(("DISC", "ghost"), dataset)
    assert matched.ids == (1, None)
    assert matched.warnings() == [
        "classes not in the data set, left out: ghost",
        "categories that the model does not know, counted as missed: Square ",
    ]
    with pytest.raises(
        InvalidDataset, match=r"no class of the model \(a, b\) is a category .*\(disc, Square , unused\)"
    ):
        by_name(("a", "b"), dataset)
    with pytest.raises(InvalidDataset, match="--by-index"):
        by_name(None, dataset)
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
