"""Compare every artefact of an export with the one before it, on the same pictures.

A rung is one way to compute the logits: PyTorch, ONNX Runtime, a half-precision graph, Triton. Two rungs are compared
by their logits and by the instances that the server would make of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from m2f import agreement
from m2f.agreement import CONFIDENT, Answer
from m2f.errors import InputError
from m2f.limits import MAX_IMAGE_BYTES
from m2f.logits import ImageLogits
from m2f.postprocess import Instances, postprocess
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_export.export_errors import ExportError, reason
from m2f_export.files import check_file
from m2f_export.onnx_files import INPUT, OUTPUTS, open_session
from m2f_export.sources.base import Source

HEAD_TOLERANCE = 1e-4  # largest difference of a score between the head in the graph and the Python postprocess
PIXELS_AT_ONCE = 1 << 21  # of a batch: bounds the memory of comparing

Logits = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
Rung = list[tuple[Logits, Answer]]  # for each sample


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a rung may be from the rung before.

    Attributes:
        largest: largest difference of a logit; None: only the instances are judged.
        mean: largest mean difference of the logits; None: only the instances are judged.
        unmatched: largest share of the confident instances without a partner.
        iou: smallest mean mask IoU of the matched instances.
        score: largest mean difference of the matched instances' scores.
    """

    largest: float | None
    mean: float | None
    unmatched: float
    iou: float
    score: float


# Rounding alone gives about 1e-5. But a mask logit within rounding of 0 decides whether a key is attended to. A large
# model has millions of these, and a few flip: single logits then move by some 1e-3, the mean hardly at all.
EXACT = Tolerance(largest=0.05, mean=1e-4, unmatched=0.0, iou=0.999, score=1e-4)
HALF = Tolerance(largest=None, mean=None, unmatched=0.05, iou=0.95, score=0.01)


class Sample(NamedTuple):
    """One picture: its encoded bytes, and the engine's input made from them."""

    name: str
    encoded: bytes
    pixels: npt.NDArray[Any]  # [1, H, W, 3] uint8 or [1, 3, H, W] float32
    img_shape: tuple[int, int]  # height, width of the image inside the padded input
    ori_shape: tuple[int, int]  # height, width of the original image


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One rung against the rung before.

    Attributes:
        name: the rung.
        cls_max: largest difference of a class logit.
        cls_mean: mean difference of the class logits.
        mask_max: largest difference of a mask logit.
        mask_mean: mean difference of the mask logits.
        instances: number of confident instances of the rung before, over all pictures.
        matched: number of those that have a partner of the same class.
        extra: number of confident instances of this rung without a partner.
        iou: mean mask IoU of the matched instances; 1 without any.
        score_max: largest score difference of the matched instances. Queries that compete for one object swap their
            scores at a rounding, so single differences can be large.
        score_mean: mean score difference of the matched instances.
        tolerance: the differences that were allowed.
    """

    name: str
    cls_max: float
    cls_mean: float
    mask_max: float
    mask_mean: float
    instances: int
    matched: int
    extra: int
    iou: float
    score_max: float
    score_mean: float
    tolerance: Tolerance

    def failures(self) -> list[str]:
        """Return what is outside the tolerance, in words; empty if nothing is."""
        allowed = self.tolerance
        missing = self.instances - self.matched + self.extra
        figures = [
            ("cls_logits", "at most", self.cls_max, allowed.largest),
            ("cls_logits", "on average", self.cls_mean, allowed.mean),
            ("mask_logits", "at most", self.mask_max, allowed.largest),
            ("mask_logits", "on average", self.mask_mean, allowed.mean),
        ]
        checks = [
            *((figure <= limit, f"{output} differ by {figure:.1e} {how}, allowed {limit:.0e}")
              for output, how, figure, limit in figures if limit is not None),
            (np.isfinite(self.cls_max + self.mask_max), "the logits are not all finite"),
            (missing <= allowed.unmatched * max(self.instances, 1),
             f"{missing} of {self.instances} instances have no partner, allowed {allowed.unmatched:.0%}"),
            (self.iou >= allowed.iou, f"mean mask IoU {self.iou:.4f}, allowed {allowed.iou}"),
            (self.score_mean <= allowed.score,
             f"scores differ by {self.score_mean:.1e} on average, allowed {allowed.score:.0e}"),
        ]  # fmt: skip
        return [message for holds, message in checks if not holds]


@dataclass
class Ladder:
    """The rungs so far, each compared with the rung before.

    Attributes:
        source: preprocessing, settings and mask stride.
        samples: the pictures.
        steps: the comparisons, one for each rung after the first.
        first: name of the first rung.
    """

    source: Source
    samples: Sequence[Sample]
    steps: list[Comparison] = field(default_factory=list)
    first: str = ""
    _last: Rung = field(default_factory=list)

    def climb(self, name: str, run: Callable[[Sample], Logits], tolerance: Tolerance = EXACT) -> None:
        """Compute every sample on a new rung, and compare with the rung before.

        Args:
            name: the rung, for messages and the report.
            run: computes the logits of a sample.
            tolerance: the differences that are allowed.

        Raises:
            ExportError: the rung cannot compute a sample, or drifts beyond the tolerance; the message says by how much.
        """
        results: Rung = []
        for index, sample in enumerate(self.samples):
            try:
                logits = run(sample)
            except Exception as error:  # of PyTorch, or of ONNX Runtime, whose exceptions share no base class
                raise ExportError(f"{name} cannot compute {sample.name}: {reason(error)}") from error
            if self._last:
                _check_shapes(name, self._last[index][0], logits)
            results.append((logits, self._instances(logits, sample)))
        self._compare(name, results, tolerance)

    def finish(self, name: str, run: Callable[[Sample], tuple[Logits, Answer]]) -> None:
        """Compare a rung that makes its own instances, the server, with the rung before.

        Raises:
            ExportError: the rung drifts beyond `EXACT`; the message says by how much.
        """
        self._compare(name, [run(sample) for sample in self.samples], EXACT)

    def check_head(self, path: Path, settings: Settings) -> None:
        """Compare a graph with its head with the Python postprocess of the last rung's logits.

        Args:
            path: the ONNX file.
            settings: the thresholds that are fixed in the graph.

        Raises:
            ExportError: the instances differ, or their scores differ by more than `HEAD_TOLERANCE`.
        """
        session = open_session(path)
        for sample, (logits, _) in zip(self.samples, self._last, strict=True):
            shapes = {name: np.array([getattr(sample, name)], np.int32) for name in ("img_shape", "ori_shape")}
            answer = session.run(["num_instances", "labels", "scores"], {INPUT: sample.pixels, **shapes})
            (count,), labels, scores = (values[0] for values in answer)
            wanted = self._postprocess(logits, sample, settings)
            if not np.array_equal(np.sort(labels[:count]), np.sort(wanted.labels)):
                raise ExportError(
                    f"the head finds {count} instances in {sample.name}, the postprocess {len(wanted.scores)}"
                )
            difference = float(np.abs(scores[:count] - wanted.scores).max(initial=0))
            if difference > HEAD_TOLERANCE:
                raise ExportError(
                    f"the head's scores differ by {difference:.2e} in {sample.name}, allowed {HEAD_TOLERANCE}"
                )

    def _compare(self, name: str, results: Rung, tolerance: Tolerance) -> None:
        before, self._last = self._last, results
        if not before:
            self.first = name
            return
        step = compare(name, before, results, tolerance)
        self.steps.append(step)
        if failures := step.failures():
            raise ExportError(f"{name} drifts from what came before it: {'; '.join(failures)}")

    def _instances(self, logits: Logits, sample: Sample) -> Instances:
        settings = replace(self.source.settings, score_threshold=CONFIDENT, export_postprocess_mask=True)
        return self._postprocess(logits, sample, settings)

    def _postprocess(self, logits: Logits, sample: Sample, settings: Settings) -> Instances:
        cls_logits, mask_logits = logits
        facts, sizes = self.source.facts, {"img_shape": sample.img_shape, "ori_shape": sample.ori_shape}
        image = ImageLogits(cls_logits[0], mask_logits[0], **sizes, mask_stride=facts.mask_stride)
        return postprocess(image, settings, facts)

    def report(self) -> dict[str, Any]:
        """Return the ladder as JSON has it."""
        return {
            "images": [sample.name for sample in self.samples],
            "confident": CONFIDENT,
            "first": self.first,
            "steps": [asdict(step) for step in self.steps],
        }


def compare(name: str, before: Rung, after: Rung, tolerance: Tolerance) -> Comparison:
    """Compare two rungs, whose logits have equal shapes, over all samples."""
    largest, mean = [], []
    for output in range(len(OUTPUTS)):
        pairs = zip(before, after, strict=True)
        differences = [np.abs(mine[output] - theirs[output]) for (mine, _), (theirs, _) in pairs]
        largest.append(max(float(d.max(initial=0)) for d in differences))
        mean.append(float(np.mean([d.mean() for d in differences])))
    found, others = (dict(enumerate(instances for _, instances in rung)) for rung in (before, after))
    agreed = agreement.compare(found, others)
    return Comparison(
        name=name, cls_max=largest[0], cls_mean=mean[0], mask_max=largest[1], mask_mean=mean[1],
        instances=agreed.instances, matched=agreed.matched, extra=agreed.extra,
        iou=1.0 if agreed.iou is None else agreed.iou,
        score_max=agreed.score_max or 0.0, score_mean=agreed.score_mean or 0.0, tolerance=tolerance,
    )  # fmt: skip


def _check_shapes(name: str, before: Logits, after: Logits) -> None:
    for output, mine, theirs in zip(OUTPUTS, before, after, strict=True):
        if mine.shape != theirs.shape:
            raise ExportError(f"{name}: {output} is {theirs.shape}, before it was {mine.shape}")


def read_samples(source: Source, paths: Sequence[Path]) -> list[Sample]:
    """Read pictures as the server will; random pictures if `paths` is empty.

    Raises:
        ExportError: a picture cannot be read.
    """
    files = [(str(path), _read(path)) for path in paths] or _random_pictures()
    samples = []
    for name, encoded in files:
        try:
            pixels, img_shape, ori_shape = source.preprocessing([encoded])
        except InputError as error:
            raise ExportError(f"{name}: {error}") from error
        valid, original = img_shape[0].tolist(), ori_shape[0].tolist()
        samples.append(Sample(name, encoded, pixels, (valid[0], valid[1]), (original[0], original[1])))
    return samples


def _read(path: Path) -> bytes:
    check_file(path)
    try:
        with path.open("rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)  # Preprocessing refuses one that is too large
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error


def _random_pictures() -> list[tuple[str, bytes]]:
    """Return smooth pictures of several shapes, by name.

    White noise puts so many mask logits within rounding of 0 that attention masks flip.
    """
    random = np.random.default_rng(0)
    pictures = []
    for height, width in ((480, 640), (640, 427), (333, 333), (200, 501)):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        pictures.append((f"random {width}x{height}", cv2.imencode(".png", picture)[1].tobytes()))
    return pictures


def run_onnx(model: Path | bytes) -> Callable[[Sample], Logits]:
    """Return a function that computes a sample's logits with an ONNX model, a file or serialised.

    Raises:
        ExportError: ONNX Runtime does not load the model.
    """
    session = open_session(model)
    return lambda sample: tuple(session.run(list(OUTPUTS), {INPUT: sample.pixels}))


def check_batches(path: Path, preprocessing: Preprocessing, *, pixels_at_once: int = PIXELS_AT_ONCE) -> tuple[int, ...]:
    """Compare batches of random pictures with the same pictures one by one: finds a batch size that was traced in.

    Args:
        path: the ONNX file.
        preprocessing: the graph's layout and input size.
        pixels_at_once: largest batch size x height x width that is tried.

    Returns:
        The batch sizes that were tried: 2, and of 5 and 8 those that fit `pixels_at_once`.

    Raises:
        ExportError: the logits differ by more than `EXACT.mean` on average, or the graph refuses a batch.
    """
    divisor = preprocessing.pad_divisor
    height, width = size = preprocessing.input_size or (-(-256 // divisor) * divisor, -(-320 // divisor) * divisor)
    stretched = replace(
        preprocessing, scale=(width, height), scale_factor=None, keep_ratio=False, then=(), input_size=size
    )
    pixels = stretched([encoded for _, encoded in _random_pictures()])[0]
    session = open_session(path)

    def compute(rows: list[int]) -> list[npt.NDArray[np.float32]]:
        try:
            return list(session.run(list(OUTPUTS), {INPUT: pixels[rows]}))
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise ExportError(f"{path.name} refuses a batch of {len(rows)}: {reason(error)}") from error

    one_by_one = [compute([row]) for row in range(len(pixels))]
    sizes = tuple(count for count in (2, 5, 8) if count == 2 or count * height * width <= pixels_at_once)
    for count in sizes:
        rows = [i % len(pixels) for i in range(count)]
        for output, logits, singles in zip(OUTPUTS, compute(rows), zip(*one_by_one, strict=True), strict=True):
            alone = np.concatenate([singles[i] for i in rows])
            difference = float(np.abs(logits - alone).mean()) if logits.shape == alone.shape else np.inf
            if not difference <= (EXACT.mean or 0):
                raise ExportError(
                    f"{path.name}: {output} of a batch of {count} differ by {difference:.1e} on average from those "
                    "of the images one by one"
                )
    return sizes
