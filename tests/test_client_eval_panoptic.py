"""Panoptic quality: by hand, against a slow reference, against panopticapi's own code, and through the real server."""

import contextlib
import json
import zlib
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from memory import peak_of
from PIL import Image
from pycocotools import mask as coco_mask
from sources import draw_held_out

from m2f_cli.main import main
from m2f_client import InvalidRequest
from m2f_client.converters.coco import panoptic_pixels
from m2f_client.evaluation.dataset import read_panoptic
from m2f_client.evaluation.fields import InvalidDataset
from m2f_client.evaluation.quality import Counts, Quality, count_image, mean, quality, read_ids, total


def segment(identity, category, iscrowd=0):
    return {"id": identity, "category_id": category, "iscrowd": iscrowd}


def image(*runs):
    """A row of pixels: image((1, 4), (0, 2)) is 1 1 1 1 0 0."""
    return np.repeat([value for value, _ in runs], [count for _, count in runs])[None].astype(np.int32)


@pytest.mark.parametrize(
    ("truth", "segments", "found", "others", "counts"),
    [
        # found with IoU 8/10
        (image((1, 8), (2, 2)), [segment(1, 7), segment(2, 3)], image((5, 10)), [segment(5, 7)],
         {7: Counts(0.8, 1, 0, 0), 3: Counts(missed=1)}),
        # an IoU of exactly 0.5 is not above it
        (image((1, 3), (2, 1)), [segment(1, 7), segment(2, 3)], image((5, 2), (6, 2)), [segment(5, 7)],
         {7: Counts(2 / 3, 1, 0, 0), 3: Counts(missed=1)}),
        (image((1, 2), (2, 2)), [segment(1, 7), segment(2, 3)], image((5, 4)), [segment(5, 7)],
         {7: Counts(missed=1, false=1), 3: Counts(missed=1)}),
        # another class
        (image((1, 4)), [segment(1, 7)], image((1, 4)), [segment(1, 8)], {7: Counts(missed=1), 8: Counts(false=1)}),
        # void is in no union: 4 of 4 and not of 8
        (image((1, 4), (0, 4)), [segment(1, 7)], image((9, 8)), [segment(9, 7)], {7: Counts(1, 1, 0, 0)}),
        # mostly in void is not false; half is
        (image((1, 4), (0, 5)), [segment(1, 7)], image((0, 1), (9, 8)), [segment(9, 8)], {7: Counts(missed=1)}),
        (image((1, 4), (0, 4)), [segment(1, 7)], image((9, 8)), [segment(9, 8)],
         {7: Counts(missed=1), 8: Counts(false=1)}),
        # a crowd is not found nor missed, and excuses its own class only
        (image((1, 8)), [segment(1, 7, 1)], image((9, 8)), [segment(9, 7)], {}),
        (image((1, 8)), [segment(1, 7, 1)], image((9, 8)), [segment(9, 8)], {8: Counts(false=1)}),
        # void and crowd together
        (image((1, 3), (0, 2), (2, 3)), [segment(1, 7, 1), segment(2, 5)], image((9, 8)), [segment(9, 7)],
         {5: Counts(missed=1)}),
        (image((0, 4)), [], image((0, 4)), [], {}),
    ],
)  # fmt: skip
def test_by_hand(truth, segments, found, others, counts):
    assert count_image(truth, segments, found, others) == counts


def test_quality_by_hand():
    assert quality(Counts(iou=1.5, found=2, false=1, missed=3)) == Quality(1.5 / 4, 0.75, 0.5)
    assert quality(Counts(missed=1)) == Quality(0, 0, 0)
    assert quality(Counts()) == quality(None) == Quality(None, None, None)
    assert mean([Quality(0.2, 0.4, 0.5), Quality(None, None, None), Quality(0.4, 0.6, 0.7)]) == Quality(
        pytest.approx(0.3), 0.5, 0.6
    )
    assert mean([]) == Quality(None, None, None)


def random_image(rng):
    """A truth with void, crowds (one a class at most, as COCO has it), and a model that finds most of it."""
    height, width = 24, 32
    truth = np.zeros((height, width), np.int32)
    for identity in rng.choice(1 << 24, 7, replace=False):
        y, x, h, w = rng.integers(0, (height, width, 16, 16))
        truth[y : y + h + 3, x : x + w + 3] = identity
    segments, crowded = [], set()
    for identity in np.unique(truth)[1:].tolist():
        category = int(rng.integers(1, 5))
        crowd = int(rng.random() < 0.3 and category not in crowded)
        crowded |= {category} if crowd else set()
        segments.append(segment(identity, category, crowd))
    found = np.roll(truth, rng.integers(-2, 3, 2), (0, 1))
    if rng.random() < 0.5:
        found[:, rng.integers(width) :] = int(rng.integers(1, 1 << 24))
    category_of = {one["id"]: one["category_id"] for one in segments}
    others = []
    for identity in np.unique(found).tolist():
        if identity:
            guess = category_of.get(identity, 1) if rng.random() < 0.8 else int(rng.integers(1, 5))
            others.append({"id": identity, "category_id": guess})
    return truth, segments, found, others


def slow_counts(truth, segments, found, others):
    """The definition, mask by mask."""
    counts = defaultdict(Counts)
    paired = set()
    for one in segments:
        hits = []
        for other in others:
            inside, mine = truth == one["id"], found == other["id"]
            union = (inside | (mine & (truth != 0))).sum()
            if one["category_id"] == other["category_id"] and (inside & mine).sum() / union > 0.5:
                hits.append((other["id"], (inside & mine).sum() / union))
        if one["iscrowd"]:
            continue
        assert len(hits) <= 1
        for identity, iou in hits:
            paired.add(identity)
            counts[one["category_id"]].add(Counts(iou=iou, found=1))
        counts[one["category_id"]].missed += not hits
    for other in others:
        mine = found == other["id"]
        excused = truth == 0
        for one in segments:
            if one["iscrowd"] and one["category_id"] == other["category_id"]:
                excused = excused | (truth == one["id"])
        if other["id"] not in paired and (mine & excused).sum() / mine.sum() <= 0.5:
            counts[other["category_id"]].false += 1
    return {category: c for category, c in counts.items() if c != Counts()}


def test_against_a_slow_reference():
    rng = np.random.default_rng(1)
    images = [random_image(rng) for _ in range(200)]
    for one in images:
        assert as_rows(count_image(*one)) == as_rows(slow_counts(*one))
    sums = total(count_image(*one) for one in images).values()
    assert all(c.found > 20 and c.false > 20 and c.missed > 20 for c in sums)
    assert sum(one["iscrowd"] for _, segments, _, _ in images for one in segments) > 50


def as_rows(counts):
    return sorted((category, round(c.iou, 9), c.found, c.false, c.missed) for category, c in counts.items())


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_against_panopticapi(tmp_path, monkeypatch):
    """mmdetection ships panopticapi's loop; the two names it imports from there are small."""
    from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

    ensure_mmcv_ops()
    from mmdet.evaluation.functional import panoptic_utils

    class Stat(defaultdict):
        def __missing__(self, key):
            self[key] = type("Class", (), {"iou": 0.0, "tp": 0, "fp": 0, "fn": 0})()
            return self[key]

    monkeypatch.setattr(panoptic_utils, "PQStat", Stat)
    monkeypatch.setattr(panoptic_utils, "rgb2id", lambda c: c.astype(np.int64) @ (1, 256, 256**2))
    rng = np.random.default_rng(2)
    images = [random_image(rng) for _ in range(25)]
    pairs = []
    for index, (truth, segments, found, others) in enumerate(images):
        for name, ids in (("truth", truth), ("found", found)):
            Image.fromarray(panoptic_pixels(ids)).save(tmp_path / f"{index}_{name}.png")
        areas = [{**one, "area": int((truth == one["id"]).sum())} for one in segments]
        pairs.append((
            {"image_id": index, "file_name": f"{index}_truth.png", "segments_info": areas},
            {"image_id": index, "file_name": f"{index}_found.png", "segments_info": [dict(one) for one in others]},
        ))  # fmt: skip
    theirs = panoptic_utils.pq_compute_single_core(0, pairs, tmp_path, str(tmp_path), dict.fromkeys(range(1, 5)))
    ours = total(count_image(*one) for one in images)
    assert set(ours) == set(theirs)
    for category, counts in ours.items():
        other = theirs[category]
        assert (counts.found, counts.false, counts.missed) == (other.tp, other.fp, other.fn)
        assert counts.iou == pytest.approx(other.iou, abs=1e-9)


# ---------------------------------------------------------------------------------------------------------- command

NAMES = ("disc", "grass", "ghost")


@pytest.fixture
def scene(tmp_path):
    """Two images: a disc on grass, and grass alone with void."""
    folder = tmp_path / "data"
    for name in ("annotations/panoptic_val", "val"):
        (folder / name).mkdir(parents=True)
    maps = {1: np.full((20, 30), 300, np.int32), 2: np.full((10, 10), 70_000, np.int32)}
    maps[1][5:15, 5:15], maps[2][:2] = 1, 0
    segments = {1: [segment(1, 4), segment(300, 8)], 2: [segment(70_000, 8)]}
    images, annotations = [], []
    for image_id, ids in maps.items():
        height, width = ids.shape
        Image.new("RGB", (width, height), (image_id, 0, 0)).save(folder / "val" / f"{image_id}.png")
        Image.fromarray(panoptic_pixels(ids)).save(folder / "annotations" / "panoptic_val" / f"{image_id}_map.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        annotations.append(
            {"image_id": image_id, "file_name": f"{image_id}_map.png", "segments_info": segments[image_id]}
        )
    categories = [{"id": 8, "name": "grass", "isthing": 0}, {"id": 4, "name": "disc", "isthing": 1}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "panoptic_val.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def m2f():
    """Run `m2f eval` on a server that finds grass everywhere but for a ghost of 4 pixels, and a part of the disc.

    The server `m2f.start("blind")` finds no disc, "choosy" refuses the second picture.
    """

    def answer(request, kind):
        data = request.inputs["image"][0, 0]
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")  # of a PNG
        ids = np.full((1, height, width), 2, np.int32)
        ids[:, -2:, -2:] = 3
        segments = [{"id": 2, "category_id": 1, "isthing": False}, {"id": 3, "category_id": 2, "isthing": True}]
        if height == 10 and kind == "choosy":
            raise InvalidRequest("not this one")
        if height == 20 and kind != "blind":
            ids[:, 5:15, 5:11] = 1
            segments.append({"id": 1, "category_id": 0, "isthing": True})
        texts = np.array([[json.dumps(segments).encode()]], object)
        return {"panoptic": ids, "segments": texts, "size": np.array([[height, width]], np.int32)}

    def run(*arguments):
        return CliRunner().invoke(main, ["eval", "--panoptic", "--url", run.server.url, *map(str, arguments)])

    with contextlib.ExitStack() as stack:
        run.start = lambda kind: stack.enter_context(serving(partial(answer, kind=kind), class_names=json.dumps(NAMES)))
        run.server = run.start("usual")
        yield run


def test_report(m2f, scene, tmp_path):
    """The disc: IoU 60 / 100. Grass: 496 / (500 + 540 - 496) and 76 / 80, void left out."""
    ran = m2f(scene, "--out", tmp_path / "out", "--parameter", "panoptic_score_threshold=0.5")
    assert ran.exit_code == 0, ran.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    grass = (496 / 540 + 76 / 80) / 2
    figures = metrics["panoptic"]
    assert figures["things"] == pytest.approx({"PQ": 0.6, "SQ": 0.6, "RQ": 1})
    assert figures["stuff"] == pytest.approx({"PQ": grass, "SQ": grass, "RQ": 1})
    assert figures["all"]["PQ"] == pytest.approx((0.6 + grass) / 2)
    assert [(one["name"], one["objects"]) for one in figures["per_class"]] == [("disc", 1), ("grass", 2)]
    assert metrics["parameters"] == {"panoptic_score_threshold": 0.5}
    assert f"{grass:.3f}" in ran.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.json"]
    assert set(m2f.server.requests[0].outputs) == {"panoptic", "segments", "size"}


def test_against_itself_nothing_differs(m2f, scene):
    ran = m2f(scene, "--against", m2f.start("usual").url, "--json")
    against = json.loads(ran.stdout)["against"]
    assert against["images"] == 2
    assert against["difference"] == {"PQ": 0, "SQ": 0, "RQ": 0}
    assert against["differ"] == []


def test_against_another_server_differences_are_found(m2f, scene):
    """The other one does not find the disc, which is in the first picture only."""
    ran = m2f(scene, "--against", m2f.start("blind").url, "--json")
    document = json.loads(ran.stdout)
    figures, against = document["panoptic"], document["against"]
    assert against["before"] == figures["all"]
    assert against["after"]["PQ"] == against["before"]["PQ"] + against["difference"]["PQ"] < against["before"]["PQ"]
    assert len(against["differ"]) == 1
    assert against["differ"][0].endswith("1.png")
    shown = m2f(scene, "--against", m2f.start("blind").url).stdout
    assert "other numbers of found, false or missed segments" in shown
    assert f"{against['difference']['PQ']:+.4f}" in shown


def test_what_the_other_server_does_not_do_is_in_no_figure(m2f, scene):
    ran = m2f(scene, "--against", m2f.start("choosy").url, "--json")
    assert ran.exit_code == 1
    against = json.loads(ran.stdout)["against"]
    assert (against["images"], len(against["failures"])) == (1, 1)
    assert against["difference"]["PQ"] == 0


def test_a_file_is_no_server(m2f, scene):
    ran = m2f(scene, "--against", "results.json")
    assert ran.exit_code == 2
    assert "compares with a server" in ran.stderr


def info(document):
    """The second segment of the first image."""
    return document["annotations"][0]["segments_info"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].update(file_name="away.png"), r"1 panoptic PNGs of .* are missing: .*away\.png"),
        (lambda d: d["annotations"].pop(), r"1 panoptic PNGs of .* are missing: one for .*2\.png"),
        (lambda d: d["categories"][0].pop("isthing"), r"categories\[0\] has no valid 'isthing'"),
        (lambda d: d["annotations"][0].pop("segments_info"), r"annotations\[0\] has no valid 'segments_info'"),
        (
            lambda d: d["annotations"][0]["segments_info"][1].pop("id"),
            r"annotations\[0\].segments_info\[1\] has no valid 'id'",
        ),
        (lambda d: d["annotations"][0].update(image_id=9), "image_id 9, which does not exist"),
        (
            lambda d: d["annotations"][0].update(image_id=None),
            r"annotations\[0\] has no valid 'image_id': it is absent",
        ),
        (lambda d: d.update(annotations=[{"segmentation": []}]), "instance annotations need no --panoptic"),
        (lambda d: d["annotations"][1].update(image_id=1), r"annotations\[1\] is the second one with the image_id 1"),
        (lambda d: d["annotations"][0].update(file_name=None), r"annotations\[0\] has no valid 'file_name'"),
        (lambda d: d["annotations"][0].update(segments_info=None), r"annotations\[0\] has no valid 'segments_info'"),
        (lambda d: d["annotations"][0].update(segments_info=[None]), r"segments_info\[0\] is None; allowed: an object"),
        (lambda d: info(d).update(id=0), r"segments_info\[1\] has no valid 'id': got 0; allowed: .* 1 to 16777215"),
        (lambda d: info(d).update(id=2**24), "allowed: a whole number from 1 to 16777215"),
        (lambda d: info(d).update(id="x"), r"segments_info\[1\] has no valid 'id': got 'x'"),
        (lambda d: info(d).update(id=1), r"segments_info\[1\] has the id of .*segments_info\[0\]"),
        (lambda d: info(d).update(category_id=9), "category_id 9, which does not exist"),
        (lambda d: info(d).update(category_id=None), r"segments_info\[1\] has no valid 'category_id'"),
        (lambda d: info(d).update(iscrowd=2), r"segments_info\[1\] has no valid 'iscrowd': got 2"),
        (lambda d: d["categories"][0].update(isthing=2), r"categories\[0\] has no valid 'isthing'"),
        (lambda d: d["categories"][0].update(isthing=None), r"categories\[0\] has no valid 'isthing'"),
    ],
)
def test_a_data_set_that_cannot_be_used(scene, change, message):
    path = scene / "annotations" / "panoptic_val.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidDataset, match=message):
        read_panoptic(scene)


def test_a_png_that_does_not_fit_is_named(m2f, scene):
    maps = scene / "annotations" / "panoptic_val"
    (maps / "2_map.png").write_bytes((maps / "1_map.png").read_bytes())
    ran = m2f(scene, "--json")
    assert ran.exit_code == 1
    assert "2_map.png is 30x20, another size than its image, 10x10" in ran.stderr
    assert json.loads(ran.stdout)["images"] == 1
    (maps / "1_map.png").write_bytes(b"no image")
    assert "1_map.png cannot be read" in m2f(scene).stderr


def test_what_other_tools_write_is_the_same_data_set(m2f, scene):
    before = json.loads(m2f(scene, "--json").stdout)
    path = scene / "annotations" / "panoptic_val.json"
    document = json.loads(path.read_text())
    for annotation in document["annotations"]:
        annotation["file_name"] = "annotations\\panoptic_val\\" + annotation["file_name"]
        annotation["image_id"] = str(annotation["image_id"])
        for one in annotation["segments_info"]:
            one.update(iscrowd=None, area=None, bbox=None, id=float(one["id"]))
    document["categories"].append({"id": 0, "name": "disc", "isthing": True})
    path.write_text(json.dumps(document))
    ran = m2f(scene, "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["panoptic"] == before["panoptic"]


def test_segments_and_pixels_that_do_not_belong_together_are_named(m2f, scene):
    path = scene / "annotations" / "panoptic_val.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["segments_info"].append(segment(77, 4))
    document["annotations"][1]["segments_info"].clear()
    path.write_text(json.dumps(document))
    ran = m2f(scene)
    assert ran.exit_code == 1
    assert f"1_map.png has no pixel of segment 77; allowed: the ids in segments_info of image 1 in {path}" in ran.stderr
    document["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(document))
    ran = m2f(scene, "--json")
    assert ran.exit_code == 1
    assert "2_map.png has pixels of segment 70000; allowed: the ids in segments_info of image 2" in ran.stderr
    assert json.loads(ran.stdout)["images"] == 1


def with_another_size(data):
    header = data[12:16] + (9_000).to_bytes(4, "big") * 2 + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def with_four_megabytes_of_text(data):
    chunk = b"zTXtx\0\0" + zlib.compress(bytes(1 << 22))
    return data[:33] + (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_another_size, "1_map.png is 9000x9000, another size than its image, 30x20"),
        (with_four_megabytes_of_text, "1_map.png cannot be read as PNG: .*"),
        (lambda data: data[:-30], "1_map.png cannot be read as PNG"),
        (lambda _: b"", "1_map.png cannot be read as PNG"),
        (lambda data: data[:40] + b"\xff" * 9 + data[49:], "1_map.png cannot be read as PNG"),
    ],
)
def test_a_png_of_any_damage_is_refused(scene, damage, message):
    """Another size is refused before a pixel is decoded: 9,000 x 9,000 pixels would be a gigabyte."""
    path = scene / "annotations/panoptic_val/1_map.png"
    path.write_bytes(damage(path.read_bytes()))

    def read():
        with pytest.raises(InvalidDataset, match=message):
            read_ids(path, (20, 30))

    _, peak = peak_of(read)
    assert peak < 1 << 24


@pytest.mark.server
def test_the_embedded_model(server, tmp_path):
    """Scenes of the generator as panoptic truth: every shape a thing, the background void."""
    draw_held_out(tmp_path, 10)
    source = json.loads((tmp_path / "annotations" / "val.json").read_text())
    maps = tmp_path / "annotations" / "panoptic_val"
    maps.mkdir()
    annotations = []
    for entry in source["images"]:
        ids = np.zeros((entry["height"], entry["width"]), np.int32)
        objects = [a for a in source["annotations"] if a["image_id"] == entry["id"]]
        for one in objects:
            ids[coco_mask.decode(one["segmentation"]) > 0] = one["id"]
        Image.fromarray(panoptic_pixels(ids)).save(maps / entry["file_name"])
        segments = [segment(one["id"], one["category_id"]) for one in objects]
        annotations.append({"image_id": entry["id"], "file_name": entry["file_name"], "segments_info": segments})
        np.testing.assert_array_equal(read_ids(maps / entry["file_name"], ids.shape), ids)
    categories = [{**category, "isthing": 1} for category in source["categories"]]
    document = {"images": source["images"], "annotations": annotations, "categories": categories}
    (tmp_path / "annotations" / "panoptic_val.json").write_text(json.dumps(document))
    arguments = ["eval", str(tmp_path), "--panoptic", "--url", f"grpc://{server.grpc_url}", "--json"]
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0, ran.output
    figures = json.loads(ran.stdout)["panoptic"]
    assert figures["all"]["PQ"] == figures["things"]["PQ"] > 0.75
    assert figures["stuff"] == {"PQ": None, "SQ": None, "RQ": None}
    assert figures["all"]["SQ"] > 0.85
