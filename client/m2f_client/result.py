"""The answer for one image."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from m2f import rle as coco_rle
from m2f.errors import InputError, M2FError
from m2f.rle import packed_width
from m2f.runs import Runs
from m2f_client.answer import LABEL_MAPS, ROW_OUTPUTS, Array, check
from m2f_client.client_errors import OutputNotRequested, ServerError
from m2f_client.converters import archive, coco
from m2f_client.images import ImageSource, encoded

if TYPE_CHECKING:
    import pandas
    import supervision
    from PIL import Image

    from m2f_client.converters.polygons import Polygon
    from m2f_client.pictures.geo import Geo

MASK_OUTPUTS = ("masks", "packed_masks", "rle")
"""Outputs that hold the masks, the fastest to read first."""

MAX_DENSE_BYTES = 1 << 34
"""Most bytes of dense masks that are decoded."""


@dataclass(frozen=True, eq=False)
class Result:
    """Instances of one image, best first. `len(result)` is their number K.

    Attributes:
        outputs: the arrays of the server by output name, without batch dimension and padding. The properties below read
            them; they raise OutputNotRequested for outputs that were not requested.
    """

    outputs: Mapping[str, Array]

    @classmethod
    def from_batch(cls, outputs: Mapping[str, Array], index: int) -> Result:
        """Cut image `index` out of a server's answer, without batch dimension and padding.

        Args:
            outputs: arrays with the batch dimension first. A batch of several images must have `num_instances` [N, 1]
                beside outputs with a row for each instance, and `size` [N, 2] beside masks and label maps.
            index: index of the image in the batch.

        Raises:
            ServerError: an array has another type or shape than the contract says, or arrays do not match each other.
        """
        one = {name: array[index] for name, array in outputs.items()}
        check(one)
        if "num_instances" in one:
            count = int(one["num_instances"][0])
            one.update({name: one[name][:count] for name in ROW_OUTPUTS if name in one})
        if "masks" in one and "size" in one:
            height, width = one["size"]
            one["masks"] = one["masks"][:, :height, :width]
        if "packed_masks" in one and "size" in one:
            height, width = one["size"]
            one["packed_masks"] = one["packed_masks"][:, :height, : packed_width(width)]
        if "size" in one:
            height, width = one["size"]
            one.update({name: one[name][:height, :width] for name in LABEL_MAPS if name in one})
        return cls(one)

    def __len__(self) -> int:
        for name in ROW_OUTPUTS:
            if name in self.outputs:
                return len(self.outputs[name])
        return int(self._get("num_instances")[0])

    def __repr__(self) -> str:
        return f"Result({', '.join(f'{name}: {list(array.shape)}' for name, array in self.outputs.items())})"

    @property
    def scores(self) -> Array:
        """float32 [K], descending."""
        return self._get("scores")

    @property
    def labels(self) -> Array:
        """int32 [K], 0-based class index."""
        return self._get("labels")

    @property
    def boxes(self) -> Array:
        """float32 [K, 4], x1 y1 x2 y2 in pixels of the (upright) image, half-open."""
        return self._get("boxes")

    @property
    def areas(self) -> Array:
        """int32 [K], pixels of each mask."""
        return self._get("areas")

    @property
    def queries(self) -> Array:
        """int32 [K], the query of each instance."""
        return self._get("queries")

    @property
    def rle(self) -> list[bytes]:
        """K COCO compressed RLE strings; empty strings if the server made no masks."""
        return [bytes(counts) for counts in self._get("rle")]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the (upright) image."""
        height, width = self._get("size")
        return int(height), int(width)

    @property
    def panoptic(self) -> Array:
        """int32 [H, W], for each pixel the `id` of its segment in `segments`; 0 is void."""
        return self._get("panoptic")

    @property
    def segments(self) -> list[dict[str, Any]]:
        """The panoptic segments, as COCO's `segments_info`; `category_id` is the 0-based class index.

        Raises:
            OutputNotRequested: `segments` was not requested.
            ServerError: the server's answer is not a JSON list of segments.
        """
        text = self._get("segments")[0]
        try:
            segments: list[dict[str, Any]] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ServerError(f"segments from the server are not JSON: {text[:80]!r}") from error
        if not isinstance(segments, list) or not all(map(_is_segment, segments)):
            raise ServerError(f"segments from the server have no id and category_id each: {text[:80]!r}")
        return segments

    @property
    def semantic(self) -> Array:
        """int32 [H, W], the 0-based class index of each pixel."""
        return self._get("semantic")

    @property
    def cls_logits(self) -> Array:
        """float32 [Q, C + 1], the engine's class logits."""
        return self._get("cls_logits")

    @property
    def mask_logits(self) -> Array:
        """float32 [Q, h, w], the engine's mask logits at stride 4."""
        return self._get("mask_logits")

    @property
    def has_masks(self) -> bool:
        """Whether there are masks. False if none were requested, or none made (`export_postprocess_mask=False`)."""
        rows = [self.outputs[name] for name in MASK_OUTPUTS if name in self.outputs]
        return bool(rows) and (len(self) == 0 or any(len(row) for row in rows[0]))

    @cached_property
    def masks(self) -> npt.NDArray[np.uint8]:
        """uint8 [K, H, W] of 0 and 1: the dense output if requested, else unpacked or decoded on first use.

        Raises:
            OutputNotRequested, ServerError: as `mask`.
            M2FError: the masks would take more than MAX_DENSE_BYTES.
        """
        if "masks" in self.outputs and self.has_masks:
            return self.outputs["masks"]
        height, width = self.size
        _check_room(len(self), height, width)
        masks = np.zeros((len(self), height, width), np.uint8)
        for index in range(len(self)):
            masks[index] = self.mask(index)
        return masks

    def mask(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one mask, uint8 [H, W] of 0 and 1, without decoding the others; zeros if the server made no masks.

        Raises:
            OutputNotRequested: none of `masks`, `packed_masks` and `rle` was requested.
            ServerError: the server's RLE is invalid.
            M2FError: the mask would take more than MAX_DENSE_BYTES.
        """
        name = next((name for name in MASK_OUTPUTS if name in self.outputs), "rle")
        rows = self._get(name)
        if name == "masks" and self.has_masks:
            return rows[index]
        height, width = self.size
        _check_room(1, height, width)
        if not self.has_masks:
            return np.zeros((height, width), np.uint8)
        if name == "packed_masks":
            return np.unpackbits(rows[index], axis=1, count=width)
        with _decodable(index):
            return coco_rle.decode(rows[index], height, width)

    def runs(self, index: int) -> Runs:
        """Return one mask as runs of pixels; no pixels if the server made no masks.

        Raises:
            OutputNotRequested, ServerError: as `mask`.
        """
        if "rle" not in self.outputs and any(name in self.outputs for name in MASK_OUTPUTS):
            mask = self.mask(index)
            return Runs.of_rle(coco_rle.encode_mask(mask), *mask.shape)
        counts = self._get("rle")[index]
        with _decodable(index):
            return Runs.of_rle(counts, *self.size) if counts else Runs(*np.zeros((3, 0), np.int64))

    def crop(self, index: int) -> tuple[int, int, npt.NDArray[np.uint8]]:
        """Return one mask without its empty surroundings: x and y of its upper left pixel, and uint8 [h, w] of 0 and 1.

        With `rle` this takes memory for the mask's box only, however large the image is.

        Raises:
            OutputNotRequested, ServerError: as `mask`.
        """
        if "rle" not in self.outputs or not self.has_masks:
            return 0, 0, self.mask(index)
        runs = self.runs(index)
        x1, y1, x2, y2 = runs.box
        height, width = max(1, y2 - y1), max(1, x2 - x1)
        return x1, y1, coco_rle.decode(runs.shifted(-x1, -y1).rle(height, width), height, width)

    def names(self, class_names: Sequence[str] | None) -> list[str]:
        """Return K class names; the class number as text for classes without a name."""
        return [coco.class_name(int(label), class_names) for label in self.labels]

    def to_coco(
        self, image_id: int, categories: Sequence[int | Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Return COCO result dicts, one for each instance, ready for `COCO.loadRes`; see `coco.results`."""
        return coco.results(self, image_id, categories)

    def to_panoptic(
        self, image_id: int, file_name: str, categories: Sequence[int | Mapping[str, Any]] | None = None
    ) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
        """Return a COCO panoptic annotation and the pixels of its PNG; see `coco.panoptic`."""
        return coco.panoptic(self.segments, self.panoptic, image_id, file_name, categories)

    # The modules below import OpenCV, Pillow and optional packages: they are slow to import and may not be installed.

    def to_supervision(self, class_names: Sequence[str] | None = None) -> supervision.Detections:
        """Return a `supervision.Detections`; see `detections.detections`."""
        from m2f_client.converters.detections import detections  # noqa: PLC0415

        return detections(self, class_names)

    def to_pandas(self, class_names: Sequence[str] | None = None) -> pandas.DataFrame:
        """Return a `pandas.DataFrame`, one row for each instance; see `detections.data_frame`."""
        from m2f_client.converters.detections import data_frame  # noqa: PLC0415

        return data_frame(self, class_names)

    def polygons(self) -> list[list[Polygon]]:
        """Return for each instance its polygons along pixel edges, with holes; see `polygons`."""
        from m2f_client.converters.polygons import trace  # noqa: PLC0415

        return [trace(self.runs(index)) for index in range(len(self))]

    def to_geojson(self, class_names: Sequence[str] | None = None, *, geo: Geo | None = None) -> dict[str, Any]:
        """Return a GeoJSON FeatureCollection, in pixels or on earth; see `geojson.feature_collection`.

        Args:
            class_names: the model's class names; None: class numbers.
            geo: where on earth the picture is: `m2f_client.pictures.opening.read_geo(path)`; None: in pixels.
        """
        from m2f_client.converters.geojson import feature_collection  # noqa: PLC0415

        return feature_collection(self, class_names, geo=geo)

    def to_labelme(self, image_path: str, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the content of a labelme file; see `labelme.label_file`."""
        from m2f_client.converters.labelme import label_file  # noqa: PLC0415

        return label_file(self, image_path, class_names)

    def to_label_studio(
        self,
        image: str,
        class_names: Sequence[str] | None = None,
        *,
        from_name: str = "label",
        to_name: str = "image",
    ) -> dict[str, Any]:
        """Return a Label Studio task with the instances as its prediction; see `label_studio.task`."""
        from m2f_client.converters.label_studio import task  # noqa: PLC0415

        return task(self, image, class_names, from_name=from_name, to_name=to_name)

    def plot(self, image: ImageSource, class_names: Sequence[str] | None = None) -> Image.Image:
        """Return the image with the instances drawn on it; a notebook shows it. See `draw.overlay`.

        Args:
            image: the image given to `predict`.
            class_names: the model's class names; None: class numbers.
        """
        from m2f_client.converters.draw import open_upright, overlay  # noqa: PLC0415

        return overlay(open_upright(encoded(image)), self, class_names)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all outputs to an npz file; see `archive.save`."""
        archive.save(self.outputs, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, max_bytes: int = archive.MAX_BYTES) -> Result:
        """Read a file that `save` wrote, up to `max_bytes`; see `archive.load`."""
        return cls(archive.load(path, max_bytes=max_bytes))

    def _get(self, name: str) -> Array:
        try:
            return self.outputs[name]
        except KeyError:
            raise OutputNotRequested(f"this result has no '{name}'; ask for it: outputs=(..., '{name}')") from None


@contextmanager
def _decodable(index: int) -> Iterator[None]:
    """Raise ServerError if the block cannot decode a mask."""
    try:
        yield
    except InputError as error:
        raise ServerError(f"mask {index} from the server cannot be decoded: {error}") from error


def _check_room(count: int, height: int, width: int) -> None:
    needed = count * height * width
    if needed > MAX_DENSE_BYTES:
        raise M2FError(
            f"{count} x {height} x {width} pixels of dense masks would take {needed >> 30} GiB; allowed are "
            f"{MAX_DENSE_BYTES >> 30} GiB. Result.crop, runs, polygons and rle have the same masks in less"
        )


def _is_segment(segment: object) -> bool:
    return isinstance(segment, dict) and all(type(segment.get(name)) is int for name in ("id", "category_id"))
