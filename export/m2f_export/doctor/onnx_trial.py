"""Run a graph on ONNX Runtime with one image and with two, to see what it does rather than what it states."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from m2f.contract import RAW_OUTPUTS

FREE_SIZE = 128  # height and width where the graph leaves them free
# Standard deviations of the logits: two runs differ by rounding, the rows of another image by about 1.
MIXED_ROWS = 0.05


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a graph ran.

    Attributes:
        size: height and width of the images that the graph was given.
        batch: the batch size that was run last.
        outputs: the outputs' shapes at the first batch size, by name.
        failure: what went wrong at `batch`; empty if nothing did.
    """

    size: tuple[int, int]
    batch: int = 1
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    failure: str = ""


def try_batches(path: Path, dtype: str, shape: tuple[int | None, ...]) -> Trial:
    """Run a graph with one image, then with two where the batch is free.

    Args:
        path: the ONNX file.
        dtype: `UINT8` [N, H, W, channels] or `FLOAT` [N, channels, H, W].
        shape: the input's shape; None where an axis is free.
    """
    height, width = shape[1:3] if dtype == "UINT8" else shape[2:4]
    size = (height or FREE_SIZE, width or FREE_SIZE)
    first, second = _images(size, dtype, channels=shape[3 if dtype == "UINT8" else 1] or 3)
    batch = shape[0] or 1
    options = ort.SessionOptions()
    options.log_severity_level = 4  # failures are reported here, not on the terminal
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        alone = _run(session, [first] * batch)
    except Exception as failure:  # ONNX Runtime raises many types
        return Trial(size=size, batch=batch, failure=str(failure))
    outputs = {name: array.shape for name, array in alone.items()}
    if shape[0] is not None:
        return Trial(size=size, batch=batch, outputs=outputs)
    try:
        with np.errstate(all="ignore"):  # of a graph that returns NaN
            wrong = _compare(alone, _run(session, [second, first]))
    except Exception as failure:
        wrong = str(failure)
    return Trial(size=size, batch=2, outputs=outputs, failure=wrong)


def _run(session: ort.InferenceSession, images: list[npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    batch = np.stack(images)
    size = batch.shape[1:3] if batch.dtype == np.uint8 else batch.shape[2:4]
    # a graph that holds the head also takes img_shape and ori_shape
    feeds = {value.name: np.array([size] * len(images), np.int32) for value in session.get_inputs()} | {"input": batch}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _compare(alone: dict[str, npt.NDArray[Any]], together: dict[str, npt.NDArray[Any]]) -> str:
    """Return what is wrong with the second of two images: the shape, or values that differ from the image alone."""
    for name, row in alone.items():
        rows = together[name]
        if rows.shape != (2, *row.shape[1:]):
            return f"{name} comes back as {list(rows.shape)} for 2 images and {list(row.shape)} for 1"
        if name in RAW_OUTPUTS:
            scale = float(row.std()) or 1.0
            difference = float(np.abs(rows[1].astype(np.float64) - row[0]).mean()) / scale
            if not difference <= MIXED_ROWS:
                return f"{name} of an image differs by {difference:.2g} standard deviations when another is beside it"
    return ""


def _images(size: tuple[int, int], dtype: str, *, channels: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return two smooth images that differ: noise would put many logits within rounding of a threshold."""
    rows, columns = np.mgrid[0 : 1 : size[0] * 1j, 0 : 1 : size[1] * 1j]
    image = np.stack([rows, columns, np.cos(6 * rows) * np.sin(5 * columns) / 2 + 0.5], axis=-1)[:, :, :channels]
    pair = [image, (1 - image[:, ::-1]) ** 3]
    if dtype == "UINT8":
        first, second = ((image * 255).astype(np.uint8) for image in pair)
    else:
        first, second = (((image - 0.5) * 4).transpose(2, 0, 1).astype(np.float32) for image in pair)
    return first, second
