"""Render the shapes data set: scenes and their COCO instance annotations.

    python examples/shapes/generate.py --out data/shapes --train 8000 --val 300 --seed 7

Every picture has its own ``numpy.random.Generator``, seeded by (seed, split, index), so a picture does not depend on
the number of pictures or processes.
"""

import argparse
import json
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from scenes import CLASSES, make_scene
from tqdm import tqdm

SPLITS = {"train": (0, "jpg"), "val": (1, "png")}  # number in the seed; val is lossless, so that decoders agree


def annotation(label, mask):
    """Return the COCO annotation of one mask, without its ids."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "category_id": label + 1,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "iscrowd": 0,
    }


def write_scene(index, *, out, split, seed):
    """Render picture ``index`` of a split to disk; return its COCO image entry and annotations."""
    number, suffix = SPLITS[split]
    image, labels, masks = make_scene(np.random.default_rng((seed, number, index)))
    name = f"{index:06d}.{suffix}"
    if not cv2.imwrite(str(out / split / name), image, [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f"could not write {out / split / name}")
    entry = {"id": index + 1, "file_name": name, "height": image.shape[0], "width": image.shape[1]}
    return entry, [annotation(label, mask) for label, mask in zip(labels, masks, strict=True)]


def write_split(out, split, count, seed, workers):
    """Render a split, and write ``OUT/annotations/SPLIT.json``."""
    (out / split).mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    job = partial(write_scene, out=out, split=split, seed=seed)
    with Pool(workers) as pool:
        for entry, found in tqdm(pool.imap(job, range(count), 16), total=count, desc=split):
            images.append(entry)
            annotations += [dict(a, image_id=entry["id"]) for a in found]
    for number, one in enumerate(annotations, start=1):
        one["id"] = number
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (out / "annotations" / f"{split}.json").write_text(json.dumps(document))


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--train", type=int, default=8000, help="number of training pictures")
    parser.add_argument("--val", type=int, default=300, help="number of validation pictures")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    write_split(args.out, "val", args.val, args.seed, args.workers)
    write_split(args.out, "train", args.train, args.seed, args.workers)


if __name__ == "__main__":
    main()
