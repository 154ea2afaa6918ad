"""SAHI's `get_sliced_prediction`, with a model class that sends the slices to the server.

The class reads masks as SAHI's class for mmdetection does: RLE, decoded, then traced as polygons. It sends a batch of
slices at once, as many as `predict_tiled` has in flight. SAHI's own classes mostly take one slice after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from sahi.models.base import DetectionModel
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction, PredictionResult
from sahi.slicing import get_slice_bboxes
from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
from sahi.utils.cv import get_coco_segmentation_from_bool_mask

from m2f_client import Client, Result

from .child import Way, main
from .scores import Found, placed

OUTPUTS = ("scores", "labels", "queries", "rle", "size")  # those that `predict_tiled` asks for


class Served(DetectionModel):
    """The server as a model of SAHI; `model` is a `Client`."""

    def set_model(self, model: Client, **_: Any) -> None:
        """Keep the client."""
        self.model = model

    def perform_inference(self, image: Any) -> None:
        """Send one picture."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: Sequence[Any]) -> None:
        """Send pictures, all at once."""
        with ThreadPoolExecutor(len(images)) as pool:
            self._original_predictions = list(pool.map(self._ask, images))

    def _ask(self, image: Any) -> Result:
        return self.model.predict(image, outputs=OUTPUTS, score_threshold=self.confidence_threshold)

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        shifts, shapes = fix_shift_amount_list(shift_amount_list), fix_full_shape_list(full_shape_list)
        self._object_prediction_list_per_image = [
            list(_predictions(result, shift, shape))
            for result, shift, shape in zip(self._original_predictions, shifts, shapes, strict=True)
        ]


def _predictions(result: Result, shift: Any, shape: Any) -> Iterator[ObjectPrediction]:
    for label, score, counts in zip(result.labels, result.scores, result.rle, strict=True):
        mask = coco_mask.decode({"size": list(result.size), "counts": counts})
        if polygons := get_coco_segmentation_from_bool_mask(mask):
            yield ObjectPrediction(
                segmentation=polygons,
                category_id=int(label),
                category_name=str(label),
                score=float(score),
                shift_amount=shift,
                full_shape=shape,
            )


def prepare(
    url: str, picture: str, *, tile: int, overlap: float, threshold: float, in_flight: int, **options: Any
) -> Way:
    """Connect, and cut a corner of the picture: SAHI compiles functions at the first call.

    Args:
        url: address of the server.
        picture: path of the picture.
        tile: side of a slice.
        overlap: share of the side.
        threshold: lowest score.
        in_flight: number of slices in a batch.
        options: other arguments of `get_sliced_prediction`.
    """
    model = Served(model=Client(url), confidence_threshold=threshold)
    sliced = {
        "slice_height": tile,
        "slice_width": tile,
        "overlap_height_ratio": overlap,
        "overlap_width_ratio": overlap,
    }

    def call(image: Any = picture) -> PredictionResult:
        return get_sliced_prediction(image, model, **sliced, batch_size=in_flight, verbose=0, **options)

    with Image.open(picture) as opened:
        width, height = opened.size
        call(opened.crop((0, 0, 2 * tile, 2 * tile)))
    return Way(get_slice_bboxes(height, width, tile, tile, False, overlap, overlap), call, found)


def found(result: PredictionResult) -> Iterator[Found]:
    """Return the instances of a prediction, each mask filled as `sahi.annotation.Mask.bool_mask` fills polygons."""
    for one in result.object_prediction_list:
        points = [np.array(polygon).reshape(-1, 2).round().astype(int) for polygon in one.mask.segmentation]
        x, y = np.min([part.min(axis=0) for part in points], axis=0).tolist()
        right, lower = np.max([part.max(axis=0) for part in points], axis=0).tolist()
        mask = np.zeros((lower - y + 1, right - x + 1), np.uint8)
        cv2.fillPoly(mask, [part - (x, y) for part in points], (1,))
        rle = placed(mask.astype(bool), x, y, *one.mask.full_shape)
        yield Found(0, one.category.id, float(one.score.value), rle | {"counts": rle["counts"].decode()})


if __name__ == "__main__":
    main(prepare)
