"""`m2f eval` of instances: figures against pycocotools, what differs between servers, and what can go wrong."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sources import draw_held_out

from m2f_client import Client, InvalidRequest, ServerUnavailable
from m2f_client.cli import main
from m2f_client.evaluation.categories import by_name
from m2f_client.evaluation.dataset import InvalidDataset, annotation_file, read_instances
from m2f_client.evaluation.evaluate import read_results
from m2f_client.evaluation.parity import compare, match
from m2f_client.evaluation.precision import FIGURES, average_precision
from m2f_client.fake import FakeTransport, result_of, stacked

CLASSES = ("disc", "square", "ghost")


def ellipse(size, centre, radii):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1).astype(np.uint8)


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def random_objects(rng, height, width, count):
    """Masks of all of COCO's sizes."""
    sides = np.exp(rng.uniform(np.log(4), np.log(min(height, width) / 2), (count, 2)))
    centres = rng.uniform(0, (height, width), (count, 2))
    return [ellipse((height, width), centre, side) for centre, side in zip(centres, sides, strict=True)]


@pytest.fixture
def scene(tmp_path):
    """Twelve images with crowds, an unused category, one without objects, RLE and polygons; and imperfect results."""
    rng = np.random.default_rng(5)
    (tmp_path / "val").mkdir()
    (tmp_path / "annotations").mkdir()
    images, annotations, results = [], [], []
    for image_id in range(3, 15):
        height, width = 200 + 10 * image_id, 300
        Image.new("RGB", (width, height), (image_id, 0, 0)).save(tmp_path / "val" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        for mask in random_objects(rng, height, width, 0 if image_id == 7 else 9):
            category = int(rng.choice([1, 5]))
            crowd = int(rng.random() < 0.1)
            segmentation = rle(mask)
            if not crowd and rng.random() < 0.3:
                y, x = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
                corners = [x[0], y[0], x[-1] + 1, y[0], x[-1] + 1, y[-1] + 1, x[0], y[-1] + 1]
                segmentation = [[float(value) for value in corners]]
            box = coco_mask.toBbox(rle(mask)).tolist()
            annotations.append({"image_id": image_id, "category_id": category, "iscrowd": crowd, "bbox": box,
                                "area": int(mask.sum()), "segmentation": segmentation})  # fmt: skip
            for _ in range(int(rng.integers(0, 3))):
                moved = np.roll(mask, rng.integers(-4, 5, 2), (0, 1))
                guess = category if rng.random() < 0.9 else 1
                results.append({"image_id": image_id, "category_id": guess, "score": round(float(rng.random()), 2),
                                "bbox": coco_mask.toBbox(rle(moved)).tolist(), "segmentation": rle(moved)})  # fmt: skip
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    categories = [{"id": 5, "name": "Square "}, {"id": 1, "name": "disc"}, {"id": 9, "name": "unused"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(document))
    return tmp_path, document, results


def pycocotools_stats(document, results, kind, image_ids):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(document))
        truth.createIndex()
        geometry = {"segm": "bbox", "bbox": "segmentation"}[kind]  # the one to leave out
        found = truth.loadRes([{k: v for k, v in row.items() if k != geometry} for row in results])
        judge = COCOeval(truth, found, kind)
        judge.params.imgIds = image_ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("first", [0, 4])
def test_average_precision_is_that_of_pycocotools(scene, kind, first):
    folder, document, results = scene
    image_ids = [image["id"] for image in document["images"]][first:]
    results = [row for row in results if row["image_id"] in image_ids]
    judge = pycocotools_stats(document, results, kind, image_ids)
    ours = average_precision(read_instances(folder), results, image_ids, kind)
    assert [ours.figures[name] for name in FIGURES] == pytest.approx(judge.stats.tolist(), abs=1e-6)
    assert 0.1 < ours.figures["AP"] < 0.9
    disc, square, unused = ours.classes  # by id: 1, 5, 9
    precision, recall = judge.eval["precision"][:, :, :, 0, -1], judge.eval["recall"][:, :, 0, -1]
    for index, one in enumerate((disc, square)):
        assert one.ap == pytest.approx(precision[:, :, index].mean(), abs=1e-6)
        assert one.ap50 == pytest.approx(precision[0, :, index].mean(), abs=1e-6)
        assert one.recall == pytest.approx(recall[:, index].mean(), abs=1e-6)
        np.testing.assert_allclose(one.curve, precision[0, :, index], atol=1e-6)
    assert (unused.ap, unused.objects) == (None, 0)
    assert disc.objects + square.objects == sum(
        not a["iscrowd"] and a["image_id"] in image_ids for a in document["annotations"]
    )


def test_an_annotation_numbered_0_counts(scene):
    """COCOeval takes a match with id 0 for none; some tools number from 0."""
    folder, document, results = scene
    image_ids = [image["id"] for image in document["images"]]
    wanted = average_precision(read_instances(folder), results, image_ids, "segm").figures
    for annotation in document["annotations"]:
        annotation["id"] -= 1
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(document))
    assert average_precision(read_instances(folder), results, image_ids, "segm").figures == wanted


def test_no_result_is_a_figure_of_0(scene):
    folder, document, _ = scene
    image_ids = [image["id"] for image in document["images"]]
    assert average_precision(read_instances(folder), [], image_ids, "segm").figures["AP"] == 0


# ---------------------------------------------------------------------------------------------------------- parity


def row(y, x, score, category=1, radius=10):
    mask = ellipse((60, 80), (y, x), (radius, radius))
    return {"category_id": category, "score": score, "segmentation": rle(mask)}


def test_pairs_are_of_one_class_and_each_is_used_once():
    first = [row(20, 20, 0.9), row(20, 60, 0.8), row(40, 40, 0.7, category=2)]
    second = [row(20, 60, 0.8), row(21, 20, 0.85), row(20, 20, 0.5), row(40, 40, 0.7)]
    pairs = match(first, second)
    assert sorted((i, j) for i, j, _ in pairs) == [(0, 2), (1, 0)]
    assert all(iou == 1 for _, _, iou in pairs)
    assert match([], second) == match(first, []) == []


def test_a_confident_pair_comes_before_a_better_overlap_with_a_candidate():
    first, second = [row(20, 20, 0.9)], [row(20, 20, 0.1), row(21, 20, 0.9)]
    assert [(i, j) for i, j, _ in match(first, second)] == [(0, 1)]


def test_compare():
    first = {1: [row(20, 20, 0.9), row(20, 60, 0.31), row(40, 40, 0.6), row(45, 10, 0.1)], 2: [row(20, 20, 0.5)], 3: []}
    second = {1: [row(20, 20, 0.8), row(20, 60, 0.29)], 2: [row(20, 20, 0.5), row(40, 60, 0.4)], 4: [row(9, 9, 1)]}
    parity = compare(first, second)
    assert (parity.instances, parity.matched, parity.extra) == (4, 3, 1)  # the one at 0.1 needs no partner
    assert parity.iou == 1
    assert parity.score_max == pytest.approx(0.1)
    assert parity.score_mean == pytest.approx((0.1 + 0.02 + 0) / 3)
    assert parity.images == (1, 2)
    same = compare(first, first)
    assert (same.instances, same.matched, same.extra, same.score_max, same.images) == (4, 4, 0, 0, ())
    assert compare({1: []}, {1: []}).iou is None


# --------------------------------------------------------------------------------------------------------- data set


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
        (lambda d: d["images"][2].pop("height"), r"images\[2\] has no 'height'"),
        (lambda d: d["images"][2].update(id=3), "images share an id"),
        (lambda d: d["images"][2].update(file_name="away.png"), r"1 of the 12 images of .* are missing: .*away\.png"),
        (lambda d: d["annotations"][1].update(image_id=99), r"annotations\[1\] has the image_id 99"),
        (lambda d: d["annotations"][1].update(category_id=99), r"annotations\[1\] has the category_id 99"),
        (lambda d: d["annotations"][1].update(segmentation=[]), r"annotations\[1\] has no segmentation"),
        (lambda d: d["annotations"][1].update(segmentation="x"), r"annotations\[1\] has a segmentation that is none"),
        (lambda d: d["annotations"][1].update(segmentation={"size": [9, 9], "counts": [81]}), "is .9, 9. pixels"),
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


@pytest.mark.parametrize("images", ["val", "images/val", "images", ".", "annotations"])
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
    with pytest.raises(InvalidDataset, match="two categories are named"):
        by_name(("disc",), replace(dataset, categories=(*dataset.categories, {"id": 11, "name": "Disc"})))
    with pytest.raises(InvalidDataset, match="found class 7"):
        matched[7]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"images": []}, "not a list of COCO results"),
        ([{"image_id": 3}], r"\[0\] has no 'category_id'"),
        ([row(1, 1, 1) | {"image_id": 99}], "is of image 99"),
        ([row(1, 1, 1) | {"image_id": 3}], "of another size"),
        (
            [{"image_id": 3, "category_id": 1, "score": 1, "segmentation": {"size": [230, 300], "counts": "P"}}],
            "no compressed RLE",
        ),
    ],
)
def test_saved_results_that_cannot_be_used(scene, tmp_path, results, message):
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(InvalidDataset, match=message):
        read_results(tmp_path / "results.json", read_instances(scene[0]))


# ---------------------------------------------------------------------------------------------------------- command


def server_of(document, results, *, names=CLASSES, least=0.0):
    """A transport that knows the results of each image by its red channel; `ghost` is everywhere."""
    labels = {1: 0, 5: 1}
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}

    def answer(request):
        data = request.inputs["image"][0, 0]
        try:
            picture = Image.open(io.BytesIO(data))
        except OSError:
            raise InvalidRequest("image: not a JPEG, PNG or WebP") from None
        image_id = picture.getpixel((0, 0))[0]
        if image_id == 255:
            raise ServerUnavailable("no server at fake://server; start one with: m2f serve")
        found = [r for r in results if r["image_id"] == image_id and r["score"] >= least]
        found.sort(key=lambda r: -r["score"])
        masks = np.array([coco_mask.decode(r["segmentation"]) for r in found] + [np.ones(sizes[image_id], np.uint8)])
        masks = masks[:, : picture.height, : picture.width]
        scores = [r["score"] for r in found] + [0.99]
        return stacked([result_of(masks, scores=scores, labels=[*(labels[r["category_id"]] for r in found), 2])])

    config = {"parameters": {"class_names": {"string_value": json.dumps(names)}}} if names else {}
    return FakeTransport(answer, config=config)


@pytest.fixture
def m2f(scene):
    """Run `m2f eval` on fake servers: perfect://, threshold://, nameless://."""
    _, document, results = scene
    transports = {
        "grpc://127.0.0.1:8001": server_of(document, results),
        "grpc://threshold": server_of(document, results, least=0.6),
        "grpc://nameless": server_of(document, results, names=None),
    }

    def run(*arguments):
        def open_client(url, timeout):
            Client(url, timeout=timeout).close()  # a bad address is refused as in real life
            return Client(transport=transports[url])

        return CliRunner().invoke(main, ["eval", *map(str, arguments)], obj=open_client)

    run.transports = transports
    return run


def test_report(m2f, scene, tmp_path):
    folder, document, results = scene
    out = tmp_path / "out" / "deep"
    ran = m2f(folder, "--out", out, "--parameter", "iou_threshold=0.9")
    assert ran.exit_code == 0, ran.output
    assert "\x1b" not in ran.output
    metrics = json.loads((out / "metrics.json").read_text())
    image_ids = [image["id"] for image in document["images"]]
    for kind in ("segm", "bbox"):
        wanted = pycocotools_stats(document, results, kind, image_ids).stats
        assert [metrics[kind][name] for name in FIGURES] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert metrics["images"] == 12
    assert metrics["parameters"] == {"score_threshold": 0.0, "iou_threshold": 0.9}
    assert f"{metrics['segm']['AP']:.3f}" in ran.stdout
    assert [one["name"] for one in metrics["segm"]["per_class"]] == ["disc", "Square ", "unused"]
    assert ran.stderr == "m2f: classes not in the data set, left out: ghost\n"
    saved = json.loads((out / "results.json").read_text())
    assert len(saved) == len(results)
    assert pycocotools_stats(document, saved, "segm", image_ids).stats[0] == pytest.approx(
        metrics["segm"]["AP"], abs=1e-6
    )
    assert Image.open(out / "precision_recall.png").size > (600, 400)
    assert all(r.parameters["score_threshold"] == 0.0 for r in m2f.transports["grpc://127.0.0.1:8001"].requests)


def test_json_is_one_object_and_nothing_else(m2f, scene):
    ran = m2f(scene[0], "--json", "--score-threshold", "0.25")
    assert json.loads(ran.stdout)["parameters"] == {"score_threshold": 0.25}


def test_against_itself_nothing_differs(m2f, scene, tmp_path):
    first = m2f(scene[0], "--out", tmp_path / "out", "--json")
    assert first.exit_code == 0
    for other in ("grpc://127.0.0.1:8001", tmp_path / "out" / "results.json"):
        against = json.loads(m2f(scene[0], "--against", other, "--json").stdout)["against"]
        assert set(against["difference"].values()) <= {0, None}
        assert against["matched"] == against["instances"] > 20
        assert (against["extra"], against["score_max"], against["differ"]) == (0, 0, [])
        assert against["iou"] == 1


def test_against_another_setting_differences_are_found(m2f, scene):
    ran = m2f(scene[0], "--against", "grpc://threshold", "--json")
    assert ran.exit_code == 0
    against = json.loads(ran.stdout)["against"]
    assert against["difference"]["AP"] < -0.01
    assert 0 < against["matched"] < against["instances"]
    assert against["differ"]
    assert against["score_max"] == 0
    shown = m2f(scene[0], "--against", "grpc://threshold").stdout
    assert f"{against['matched']} of {against['instances']} instances have a partner there" in shown


def test_a_model_without_names(m2f, scene):
    refused = m2f(scene[0], "--url", "grpc://nameless")
    assert refused.exit_code == 1
    assert "--by-index" in refused.stderr
    named, ordered = m2f(scene[0], "--json"), m2f(scene[0], "--url", "grpc://nameless", "--by-index", "--json")
    assert json.loads(named.stdout)["segm"]["AP"] == json.loads(ordered.stdout)["segm"]["AP"]


def test_an_image_that_does_not_work_is_named_and_left_out(m2f, scene):
    folder, document, results = scene
    (folder / "val" / "4.png").write_bytes(b"no image")
    Image.new("RGB", (9, 9), (6, 0, 0)).save(folder / "val" / "6.png")
    ran = m2f(folder, "--json")
    assert ran.exit_code == 1
    assert f"{folder}/val/4.png: image: not a JPEG, PNG or WebP" in ran.stderr
    assert "2 of 12 images did not work; the figures are of the others" in ran.stderr
    metrics = json.loads(ran.stdout)
    rest = [image["id"] for image in document["images"] if image["id"] not in (4, 6)]
    wanted = pycocotools_stats(document, [r for r in results if r["image_id"] in rest], "segm", rest).stats
    assert metrics["segm"]["AP"] == pytest.approx(wanted[0], abs=1e-6)
    assert metrics["images"] == len(rest)


def test_a_lost_server_gives_no_figures(m2f, scene, tmp_path):
    Image.new("RGB", (9, 9), (255, 0, 0)).save(scene[0] / "val" / "9.png")
    ran = m2f(scene[0], "--out", tmp_path / "out")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "start one with: m2f serve; 6 of 12 images were done, nothing is evaluated" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_no_image_works(m2f, scene):
    for file in (scene[0] / "val").iterdir():
        file.write_bytes(b"no image")
    ran = m2f(scene[0])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "none of the 12 images worked: image: not a JPEG, PNG or WebP" in ran.stderr


def test_an_unwritable_output(m2f, scene):
    (scene[0] / "file").touch()
    ran = m2f(scene[0], "--out", scene[0] / "file" / "out")
    assert ran.exit_code == 1
    assert ran.stderr.splitlines()[-1].startswith("m2f: cannot write to ")


@pytest.mark.parametrize(
    "arguments",
    [[], ["nowhere"], [".", "--url", "nonsense"], [".", "--against", "ftp://x"], [".", "--panoptic", "--against", "x"],
     [".", "--parameter", "x"], [".", "--concurrency", "0"]],
)  # fmt: skip
def test_wrong_usage_exits_2(m2f, scene, monkeypatch, arguments):
    monkeypatch.chdir(scene[0])
    ran = m2f(*arguments)
    assert ran.exit_code == 2, ran.output
    assert ran.stdout == ""


def test_a_missing_extra_is_named():
    code = "import sys; sys.modules['faster_coco_eval'] = None; from m2f_client.cli import main; main(['eval', 'x'])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "m2f eval needs: pip install 'm2f[eval]'" in ran.stderr


# ------------------------------------------------------------------------------------------------------ real server


@pytest.mark.server
def test_the_embedded_model(server, tmp_path):
    """AP as tests/test_parity.py guards it, on the first of its pictures; against itself, and other settings."""
    draw_held_out(tmp_path, 40)
    out = tmp_path / "out"

    def run(*arguments):
        ran = CliRunner().invoke(main, ["eval", str(tmp_path), "--json", *map(str, arguments)])
        assert ran.exit_code == 0, ran.output
        return json.loads(ran.stdout)

    grpc, http = f"grpc://{server.grpc_url}", f"http://{server.http_url}"
    metrics = run("--url", grpc, "--against", http, "--out", out)
    document = json.loads((tmp_path / "annotations" / "val.json").read_text())
    saved = json.loads((out / "results.json").read_text())
    wanted = pycocotools_stats(document, saved, "segm", [image["id"] for image in document["images"]]).stats
    assert [metrics["segm"][name] for name in FIGURES] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert metrics["segm"]["AP"] >= 0.70
    assert metrics["segm"]["AP50"] >= 0.90
    same = metrics["against"]
    assert same["matched"] == same["instances"] > 100
    assert (same["extra"], same["differ"], set(same["difference"].values()) <= {0, None}) == (0, [], True)

    strict = run("--url", grpc, "--score-threshold", "0.6", "--against", out / "results.json")["against"]
    assert strict["extra"] > 0
    assert strict["matched"] == strict["instances"]
    assert strict["difference"]["AP"] > 0
    some = run("--url", grpc, "--parameter", "classes=circle,ring", "--against", out / "results.json")
    assert some["against"]["extra"] > 50
    assert [one["AP"] == 0 for one in some["segm"]["per_class"]] == [False, True, True, True, False]
