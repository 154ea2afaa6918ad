"""Mask AP of a checkpoint on the shapes validation pictures, by mmdet's own inference.

    python examples/shapes/evaluate.py examples/shapes/mask2former_shapes.pth --data data/shapes

``predict_dataset`` returns COCO results, so that a server's answers for the same pictures can be scored beside them.
"""

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "mask2former_shapes.py"


def load_model(checkpoint, config=CONFIG, device="cpu"):
    """Build mmdet's model with the weights of ``checkpoint``, ready for inference."""
    sys.path.insert(0, str(HERE.parents[1] / "export"))  # works from a clone that is not installed
    from m2f_export.sources.mmcv_ops import ensure_mmcv_ops  # noqa: PLC0415

    ensure_mmcv_ops()
    from mmdet.apis import init_detector  # noqa: PLC0415 (only after the line above)

    return init_detector(str(config), str(checkpoint), device=device)


def read_annotations(data):
    """Return the COCO index of the validation pictures that generate.py wrote."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(Path(data) / "annotations" / "val.json"))


def coco_results(image_id, category_ids, instances):
    """Turn mmdet's instances of one picture into COCO result dicts."""
    masks = np.asfortranarray(instances.masks.cpu().numpy().transpose(1, 2, 0), np.uint8)  # [H, W, N]
    rles = coco_mask.encode(masks)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(label)],
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            "score": float(score),
        }
        for label, score, rle in zip(instances.labels, instances.scores, rles, strict=True)
    ]


def predict_dataset(model, data, *, limit=None, progress=False):
    """Run mmdet on the validation pictures.

    Args:
        model: the model that ``load_model`` returned.
        data: folder that generate.py wrote.
        limit: run on only the first ``limit`` pictures.
        progress: show a bar.

    Returns:
        COCO result dicts with masks as compressed RLE, for ``COCO.loadRes`` and ``score``.
    """
    from mmdet.apis import inference_detector  # noqa: PLC0415 (only after load_model)

    truth = read_annotations(data)
    category_ids = truth.getCatIds()
    image_ids = sorted(truth.getImgIds())[:limit]
    results = []
    for image_id in tqdm(image_ids, desc="val", disable=not progress):
        path = Path(data) / "val" / truth.imgs[image_id]["file_name"]
        instances = inference_detector(model, str(path)).pred_instances
        results += coco_results(image_id, category_ids, instances)
    return results


def score(truth, results, *, limit=None):
    """Return COCO's mask AP: ``{"AP", "AP50", "AP75", "images", "per_class": {name: AP}}``.

    Args:
        truth: the index that ``read_annotations`` returned.
        results: COCO result dicts.
        limit: the ``limit`` that the predictions were made with.
    """
    image_ids = sorted(truth.getImgIds())[:limit]
    if not results:
        raise ValueError("no predictions to score")
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(truth, truth.loadRes(results), "segm")
        judge.params.imgIds = image_ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    precision = judge.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class] at 100 detections
    return {
        "AP": float(judge.stats[0]),
        "AP50": float(judge.stats[1]),
        "AP75": float(judge.stats[2]),
        "images": len(image_ids),
        "per_class": {
            category["name"]: float(values[values > -1].mean()) if (values > -1).any() else float("nan")
            for category, values in zip(truth.loadCats(truth.getCatIds()), np.moveaxis(precision, 2, 0), strict=True)
        },
    }


def report(figures):
    """Return the figures as a few lines of text."""
    head = f"{figures['images']} images: AP {figures['AP']:.3f}, AP50 {figures['AP50']:.3f}, AP75 {figures['AP75']:.3f}"
    return "\n".join([head, *(f"  {name:9s} AP {value:.3f}" for name, value in figures["per_class"].items())])


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that generate.py wrote")
    parser.add_argument("--limit", type=int, help="evaluate only the first LIMIT pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    model = load_model(args.checkpoint)
    results = predict_dataset(model, args.data, limit=args.limit, progress=True)
    figures = score(read_annotations(args.data), results, limit=args.limit)
    print(json.dumps(figures) if args.json else report(figures))


if __name__ == "__main__":
    main()
