"""`m2f eval` of instances: figures against pycocotools, what differs between servers, and what can go wrong."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from coco_data import pycocotools_stats, write_scene
from fake_server import serving
from PIL import Image
from pycocotools import mask as coco_mask
from sources import draw_held_out

from m2f_cli.main import main
from m2f_client import InvalidRequest, ModelNotFound
from m2f_client.evaluation.dataset import read_instances
from m2f_client.evaluation.precision import FIGURES, average_precision
from m2f_client.fake import result_of, stacked

CLASSES = ("disc", "square", "ghost")


@pytest.fixture
def scene(tmp_path):
    return tmp_path, *write_scene(tmp_path)


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


def answers_of(document, results, *, least=0.0, refused=None):
    """What a server answers that knows the results of each image by its red channel; `ghost` is everywhere."""
    labels = {1: 0, 5: 1}
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}

    def answer(request):
        data = request.inputs["image"][0, 0]
        try:
            picture = Image.open(io.BytesIO(data))
        except OSError:
            raise InvalidRequest("image: not a JPEG, PNG or WebP") from None
        image_id = picture.getpixel((0, 0))[0]
        if image_id == refused:
            raise InvalidRequest("not today")
        if image_id == 255:
            raise ModelNotFound("unknown model: 'mask2former'")
        found = [r for r in results if r["image_id"] == image_id and r["score"] >= least]
        found.sort(key=lambda r: -r["score"])
        masks = np.array([coco_mask.decode(r["segmentation"]) for r in found] + [np.ones(sizes[image_id], np.uint8)])
        masks = masks[:, : picture.height, : picture.width]
        scores = [r["score"] for r in found] + [0.99]
        return stacked([result_of(masks, scores=scores, labels=[*(labels[r["category_id"]] for r in found), 2])])

    return answer


@pytest.fixture
def make_server(scene):
    """Start a fake server, as `answers_of` says; it lives as long as the test."""
    _, document, results = scene
    with contextlib.ExitStack() as stack:

        def make(*, names=CLASSES, **options):
            answer = answers_of(document, results, **options)
            return stack.enter_context(serving(answer, class_names=names and json.dumps(names)))

        yield make


@pytest.fixture
def m2f(make_server):
    """Run `m2f eval` on a fake server, `m2f.server`, unless --url names another."""
    ours = make_server()

    def run(*arguments):
        return CliRunner().invoke(main, ["eval", "--url", ours.url, *map(str, arguments)])

    run.server = ours
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
    assert ran.stderr == f"m2f: mask2former at {m2f.server.url}: classes not in the data set, left out: ghost\n"
    saved = json.loads((out / "results.json").read_text())
    assert len(saved) == len(results)
    assert pycocotools_stats(document, saved, "segm", image_ids).stats[0] == pytest.approx(
        metrics["segm"]["AP"], abs=1e-6
    )
    assert Image.open(out / "precision_recall.png").size > (600, 400)
    assert all(r.parameters["score_threshold"] == 0.0 for r in m2f.server.requests)


def test_json_is_one_object_and_nothing_else(m2f, scene):
    ran = m2f(scene[0], "--json", "--score-threshold", "0.25")
    assert json.loads(ran.stdout)["parameters"] == {"score_threshold": 0.25}


def test_against_itself_nothing_differs(m2f, scene, tmp_path):
    first = m2f(scene[0], "--out", tmp_path / "out", "--json")
    assert first.exit_code == 0
    for other in (m2f.server.url.removeprefix("grpc://"), tmp_path / "out" / "results.json"):
        against = json.loads(m2f(scene[0], "--against", other, "--json").stdout)["against"]
        assert set(against["difference"].values()) <= {0, None}
        assert against["matched"] == against["instances"] > 20
        assert (against["extra"], against["score_max"], against["differ"]) == (0, 0, [])
        assert against["iou"] == 1


def test_against_another_setting_differences_are_found(m2f, scene, make_server):
    other = make_server(least=0.6).url
    ran = m2f(scene[0], "--against", other, "--json")
    assert ran.exit_code == 0
    against = json.loads(ran.stdout)["against"]
    assert against["difference"]["AP"] < -0.01
    assert 0 < against["matched"] < against["instances"]
    assert against["differ"]
    assert against["score_max"] == 0
    shown = m2f(scene[0], "--against", other).stdout
    assert f"{against['matched']} of {against['instances']} instances have a partner; " in shown


def test_a_model_without_names(m2f, scene, make_server):
    nameless = make_server(names=None).url
    refused = m2f(scene[0], "--url", nameless)
    assert refused.exit_code == 1
    assert "--by-index" in refused.stderr
    named, ordered = m2f(scene[0], "--json"), m2f(scene[0], "--url", nameless, "--by-index", "--json")
    assert json.loads(named.stdout)["segm"]["AP"] == json.loads(ordered.stdout)["segm"]["AP"]


def test_an_image_that_does_not_work_is_named_and_left_out(m2f, scene):
    folder, document, results = scene
    (folder / "val" / "4.png").write_bytes(b"no image")
    Image.new("RGB", (9, 9), (6, 0, 0)).save(folder / "val" / "6.png")
    ran = m2f(folder, "--json")
    assert ran.exit_code == 1
    assert f"{folder}/val/4.png: image: not a JPEG, PNG or WebP" in ran.stderr
    assert f"m2f: mask2former at {m2f.server.url}: images that failed and are left out of all figures: 2" in ran.stderr
    metrics = json.loads(ran.stdout)
    rest = [image["id"] for image in document["images"] if image["id"] not in (4, 6)]
    wanted = pycocotools_stats(document, [r for r in results if r["image_id"] in rest], "segm", rest).stats
    assert metrics["segm"]["AP"] == pytest.approx(wanted[0], abs=1e-6)
    assert metrics["images"] == len(rest)


def test_images_that_the_other_server_refuses_are_named_too(m2f, scene, make_server):
    ran = m2f(scene[0], "--against", make_server(refused=4).url, "--json")
    assert ran.exit_code == 1
    assert f"m2f: {scene[0]}/val/4.png: not today" in ran.stderr
    metrics = json.loads(ran.stdout)
    assert (metrics["images"], metrics["failures"]) == (12, [])
    against = metrics["against"]
    assert against["images"] == 11
    assert against["matched"] == against["instances"]
    assert set(against["difference"].values()) <= {0, None}  # of the images that both did


def test_a_lost_server_gives_no_figures(m2f, scene, tmp_path):
    Image.new("RGB", (9, 9), (255, 0, 0)).save(scene[0] / "val" / "9.png")
    ran = m2f(scene[0], "--out", tmp_path / "out")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert re.search("unknown model.*; 6 of 12 images were done, nothing is evaluated", ran.stderr)
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
    [[], ["nowhere"], [".", "--url", "s3://x"], [".", "--against", "ftp://x"], [".", "--panoptic", "--against", "x"],
     [".", "--parameter", "x"], [".", "--concurrency", "0"]],
)  # fmt: skip
def test_wrong_usage_exits_2(m2f, scene, monkeypatch, arguments):
    monkeypatch.chdir(scene[0])
    ran = m2f(*arguments)
    assert ran.exit_code == 2, ran.output
    assert ran.stdout == ""


def changed(change):
    """Change the annotation file of a data set: `change(document)` returns the text to write, or None."""

    def rewrite(folder):
        path = folder / "annotations" / "instances_val.json"
        document = json.loads(path.read_text())
        text = change(document)
        path.write_text(json.dumps(document) if text is None else text)

    return rewrite


def second(**fields):
    return changed(lambda document: document["annotations"][1].update(fields))


BROKEN = [
    (second(segmentation=[[10, 10, 1e9, 10, 10, 20]]),
     "annotations[1].segmentation[0] has the coordinate 1e+09; allowed: -131070 to 131070 (id 2)"),
    (second(segmentation=[[10, 10, float("nan"), 10, 10, 20]]), "has the coordinate nan"),
    (second(segmentation=[[10, 10, 20, 10, 10]]), "an even count of them (id 2)"),
    (second(segmentation={"size": [230, 300], "counts": [2**40]}), "annotations[1].segmentation has no valid 'counts'"),
    (second(category_id="disc"), "[1] has no valid 'category_id': got 'disc'; allowed: a whole number (id 2)"),
    (second(image_id=99), "annotations[1] has the image_id 99, which does not exist (id 2)"),
    (changed(lambda document: json.dumps(document["annotations"])), "is a list, as COCO results are"),
    (changed(lambda document: "\n".join(map(json.dumps, document["images"]))), "as in JSON Lines"),
    (changed(lambda _: ""), "is empty"),
    (changed(lambda _: "<html>"), "is not JSON but HTML or XML"),
    (changed(lambda document: [image.pop("width") for image in document["images"]] and None),
     "images[0] has no valid 'width': it is absent or null; allowed: a whole number from 1 to 65535 (id 3)"),
    (changed(lambda document: document["categories"][0].update(name="disc")),
     "the categories with the ids 1, 5 have objects and the name of class 'disc'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_one_message_says_what_is_wrong_with_a_data_set(m2f, scene, change, message):
    change(scene[0])
    ran = m2f(scene[0])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"m2f: {scene[0]}/annotations/instances_val.json")
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert m2f.server.requests == []


def foreign_names(document):
    for image in document["images"]:
        image["file_name"] = ("val\\", "C:\\data\\val\\")[image["id"] % 2] + image["file_name"]


FOREIGN = {
    "null fields": lambda document: [a.update(iscrowd=a["iscrowd"] or None, id=None) for a in document["annotations"]],
    "an unused category": lambda document: document["categories"].insert(0, {"id": 0, "name": "disc"}),
    "names written elsewhere": foreign_names,
    "numbers as text": lambda document: [a.update(image_id=str(a["image_id"])) for a in document["annotations"]],
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_other_tools_write_gives_the_same_figures(m2f, scene, name):
    before = json.loads(m2f(scene[0], "--json").stdout)
    changed(lambda document: (FOREIGN[name](document), None)[1])(scene[0])
    ran = m2f(scene[0], "--json")
    assert ran.exit_code == 0, ran.output
    after = json.loads(ran.stdout)
    assert [after[name] for name in ("segm", "bbox", "images", "objects")] == [
        before[name] for name in ("segm", "bbox", "images", "objects")
    ]


def test_results_to_compare_with_that_cannot_be_used(m2f, scene, tmp_path):
    other = tmp_path / "other.json"
    for text, message in (
        ('[{"image_id": 3, "category_id": 1, "score": 1, "segmentation": null}]', "[0] has no valid 'segmentation'"),
        (
            '[{"image_id": 3, "category_id": 1, "score": NaN, "segmentation": {"size": null}}]',
            "[0].segmentation has no",
        ),
        ("[null]", "[0] is None; allowed: an object"),
        ("", "is empty"),
    ):
        other.write_text(text)
        ran = m2f(scene[0], "--against", other)
        assert (ran.exit_code, ran.stdout) == (1, "")
        assert f"m2f: {other}" in ran.stderr
        assert message in ran.stderr


def test_an_answer_that_is_no_mask_fails_its_image(scene):
    """RLE of a foreign server that has another size is refused, because the C++ code that scores does not check it."""

    def answer(request):
        width, height = Image.open(io.BytesIO(request.inputs["image"][0, 0])).size
        arrays = stacked([result_of(np.ones((1, height, width)))])
        arrays["rle"][0, 0] = b"oooooooo0"
        return arrays

    with serving(answer, class_names=json.dumps(CLASSES)) as server:
        ran = CliRunner().invoke(main, ["eval", "--url", server.url, str(scene[0])])
    assert ran.exit_code == 1
    assert "none of the 12 images worked: 'rle' from the server is not the RLE of masks" in ran.stderr


def test_a_data_set_without_objects_has_no_figures(m2f, scene, tmp_path):
    changed(lambda document: document["annotations"].clear())(scene[0])
    ran = m2f(scene[0], "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {metrics[kind][name] for kind in ("segm", "bbox") for name in FIGURES} == {None}
    assert metrics["objects"] == 0
    against = m2f(scene[0], "--against", tmp_path / "out" / "results.json")
    assert against.exit_code == 0, against.output


def test_a_class_may_have_any_name(scene, make_server, recwarn):
    """Matplotlib reads dollar signs as formulas, hides what begins with an underscore, and warns of missing glyphs."""
    folder, document, _ = scene
    names = ["$^$ cost $5" + "x" * 5000, "_行人\n\ud800\x1b[31m%s{}"]
    for category, name in zip(document["categories"][1::-1], names, strict=True):
        category["name"] = name
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(document))
    url = make_server(names=[*names, "ghost"]).url
    ran = CliRunner().invoke(main, ["eval", "--url", url, str(folder), "--out", str(folder / "out")])
    assert ran.exit_code == 0, ran.output
    assert "\x1b" not in ran.output
    with Image.open(folder / "out" / "precision_recall.png") as picture:
        assert picture.size > (600, 400)
    assert [each for each in recwarn if issubclass(each.category, UserWarning)] == []
    per_class = json.loads((folder / "out" / "metrics.json").read_text())["segm"]["per_class"]
    assert [one["name"] for one in per_class] == [*names, "unused"]


@pytest.mark.server
def test_the_embedded_model(server, tmp_path):
    """AP as tests/test_parity.py guards it, on the first of its pictures; against itself, and other settings."""
    draw_held_out(tmp_path, 15)
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
    assert same["matched"] == same["instances"] > 40
    assert (same["extra"], same["differ"], set(same["difference"].values()) <= {0, None}) == (0, [], True)

    strict = run("--url", grpc, "--score-threshold", "0.6", "--against", out / "results.json")["against"]
    assert strict["extra"] > 0
    assert strict["matched"] == strict["instances"]
    assert strict["difference"]["AP"] > 0
    some = run("--url", grpc, "--parameter", "classes=circle,ring", "--against", out / "results.json")
    assert some["against"]["extra"] > 20
    assert [one["AP"] == 0 for one in some["segm"]["per_class"]] == [False, True, True, True, False]
