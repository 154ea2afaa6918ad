"""A small COCO data set of discs, results that are nearly right, and what pycocotools makes of them."""

import contextlib
import io
import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def ellipse(size, centre, radii):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1).astype(np.uint8)


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def uncompressed(compressed):
    """An RLE with the lengths of its runs, zeros first."""
    column_major = coco_mask.decode(compressed).T.reshape(-1)
    edges = np.flatnonzero(np.diff(column_major, prepend=0, append=0))
    counts = np.diff(edges, prepend=0, append=len(column_major)).tolist()
    return {"size": compressed["size"], "counts": counts if counts[-1] else counts[:-1]}


def random_objects(rng, height, width, count):
    """Masks of all of COCO's sizes."""
    sides = np.exp(rng.uniform(np.log(4), np.log(min(height, width) / 2), (count, 2)))
    centres = rng.uniform(0, (height, width), (count, 2))
    return [ellipse((height, width), centre, side) for centre, side in zip(centres, sides, strict=True)]


def row(y, x, score, category=1, radius=10):
    mask = ellipse((60, 80), (y, x), (radius, radius))
    return {"category_id": category, "score": score, "segmentation": rle(mask)}


def write_scene(folder):
    """Twelve images with crowds, an unused category, one without objects, RLE and polygons; and imperfect results."""
    rng = np.random.default_rng(5)
    (folder / "val").mkdir()
    (folder / "annotations").mkdir()
    images, annotations, results = [], [], []
    for image_id in range(3, 15):
        height, width = 200 + 10 * image_id, 300
        Image.new("RGB", (width, height), (image_id, 0, 0)).save(folder / "val" / f"{image_id}.png")
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
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(document))
    return document, results


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
