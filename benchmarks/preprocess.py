"""Preprocessing against the ways others do it: file to the engine's input, time and memory.

    python -m benchmarks.preprocess [--rounds 5] [--results benchmarks/results]

One thread for all. Every way must give the same pixels before it is timed. On a busy machine read `cpu ms`,
processor time; the ratios are of it.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # read at import

import argparse
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageOps
from transformers import Mask2FormerImageProcessorPil

from m2f.image import decode_image
from m2f.preprocess import Preprocessing
from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

from .frame import machine
from .frame.report import write_csv
from .postprocess.memory import peak_bytes

ROOT = Path(__file__).resolve().parents[1]
SCALE, DIVISOR = (1333, 800), 32
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_RUNS = 3  # of one way in its turn
MMDET, PIXELS, FLOATS, DECODING = "mmdet", "m2f uint8", "m2f float32", "m2f, decoding alone"

Way = Callable[[], Any]
_FLOATS = Preprocessing(scale=SCALE, pad_divisor=DIVISOR, layout="float32_chw", mean=MEAN, std=STD)
_PIXELS = Preprocessing(scale=SCALE, pad_divisor=DIVISOR)
_HUGGINGFACE = Preprocessing(
    scale=SCALE, pad_divisor=DIVISOR, layout="float32_chw", mean=MEAN, std=STD,
    resample="pillow_bilinear", size_rule="huggingface",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One way on one file.

    Attributes:
        case: the file.
        file_bytes: its size.
        way: who prepares it.
        output: what comes out.
        median_ms, cpu_ms: of every run, by the clock and in processor time.
        ratio: processor time of mmdet's pipeline over this one's.
        peak_bytes: most that the process grew, what comes out included.
    """

    case: str
    file_bytes: int
    way: str
    output: str
    median_ms: float
    cpu_ms: float
    ratio: float
    peak_bytes: int


def photograph(height: int, width: int) -> Image.Image:
    """Return a photograph of any size with the detail of a sharp one: matplotlib's, side by side at its own size."""
    tile = np.asarray(Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))).convert("RGB"))
    pair = np.concatenate([tile, tile[:, ::-1]], axis=1)
    block = np.concatenate([pair, pair[::-1]])
    repeats = -(-height // block.shape[0]), -(-width // block.shape[1]), 1
    return Image.fromarray(np.ascontiguousarray(np.tile(block, repeats)[:height, :width]))


def files() -> Iterator[tuple[str, bytes]]:
    """Yield each case."""
    turned = Image.Exif()
    turned[0x112] = 6
    jpeg = {"quality": 90, "subsampling": 2}
    yield "640x480 JPEG", _encode(photograph(480, 640), "JPEG", **jpeg)
    yield "1920x1080 JPEG", _encode(photograph(1080, 1920), "JPEG", **jpeg)
    yield "1920x1080 progressive JPEG", _encode(photograph(1080, 1920), "JPEG", **jpeg, progressive=True)
    yield "4000x3000 JPEG, turned by EXIF", _encode(photograph(3000, 4000), "JPEG", **jpeg, exif=turned)
    yield "1920x1080 PNG", _encode(photograph(1080, 1920), "PNG")
    yield "1920x1080 WebP", _encode(photograph(1080, 1920), "WEBP", quality=85)


def _encode(image: Image.Image, extension: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, extension, **options)
    return buffer.getvalue()


def mmdet(path: Path) -> Way:
    """Return mmdetection's test pipeline and data preprocessor; the file is read from the page cache."""
    ensure_mmcv_ops()
    from mmcv.transforms import Compose, LoadImageFromFile  # noqa: PLC0415 (after the compiled operators are stubbed)
    from mmdet.datasets.transforms import PackDetInputs, Resize  # noqa: PLC0415
    from mmdet.models import DetDataPreprocessor  # noqa: PLC0415

    steps = [LoadImageFromFile(), Resize(scale=SCALE, keep_ratio=True), PackDetInputs(meta_keys=("img_shape",))]
    pipeline = Compose(steps)
    preprocessor = DetDataPreprocessor(mean=MEAN, std=STD, bgr_to_rgb=True, pad_size_divisor=DIVISOR)

    def run() -> np.ndarray:
        packed = pipeline({"img_path": str(path), "img_id": 0})
        return preprocessor({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})["inputs"].numpy()

    return run


def huggingface(data: bytes) -> Way:
    """Return transformers' image processor on what Pillow decodes; without torchvision it has no faster one."""
    processor = Mask2FormerImageProcessorPil(
        size={"shortest_edge": min(SCALE), "longest_edge": max(SCALE)}, size_divisor=DIVISOR,
        image_mean=[value / 255 for value in MEAN], image_std=[value / 255 for value in STD],
    )  # fmt: skip
    return lambda: processor(_pillow_rgb(data), return_tensors="np")["pixel_values"]


def _pillow_rgb(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def pillow(data: bytes) -> Way:
    """Return the plain way, and this project's before: Pillow decodes, OpenCV resizes, numpy pads."""

    def run() -> np.ndarray:
        image = np.asarray(_pillow_rgb(data))
        height, width = _PIXELS.target_size(*image.shape[:2])
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        batch = np.empty((1, *(-(-side // DIVISOR) * DIVISOR for side in (height, width)), 3), np.uint8)
        batch[:] = np.array((0, 0, 0), np.uint8)
        batch[0, :height, :width] = resized
        return batch

    return run


def ways(data: bytes, path: Path) -> dict[str, Way]:
    """Return every way for one file; mmdet's comes first."""
    return {
        MMDET: mmdet(path),
        "huggingface": huggingface(data),
        "Pillow + cv2, uint8": pillow(data),
        "m2f float32, as huggingface": lambda: _HUGGINGFACE([data])[0],
        FLOATS: lambda: _FLOATS([data])[0],
        PIXELS: lambda: _PIXELS([data])[0],
        DECODING: lambda: decode_image(data, max_pixels=_PIXELS.max_pixels),
    }


def check(answers: dict[str, np.ndarray]) -> None:
    """Hold every way to mmdetection's input; Hugging Face's filter is another, so its two ways to each other.

    Raises:
        SystemExit: other pixels; a time for them would mean nothing.
    """
    pixels, floats = answers[PIXELS], answers[FLOATS]
    theirs = answers["huggingface"]
    normalised = ((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(0, 3, 1, 2)
    inside = floats != 0  # padding is 0 after normalisation there, before it here
    same = {
        MMDET: np.allclose(answers[MMDET], floats, rtol=0, atol=1e-6),
        PIXELS: np.array_equal(normalised[inside], floats[inside]),
        "Pillow + cv2, uint8": np.array_equal(answers["Pillow + cv2, uint8"], pixels),
        "huggingface": np.allclose(answers["m2f float32, as huggingface"], theirs, rtol=0, atol=1e-5),
    }
    if wrong := [way for way, equal in same.items() if not equal]:
        raise SystemExit(f"benchmark: other pixels than m2f: {', '.join(wrong)}")


def measure(case: str, data: bytes, path: Path, *, rounds: int) -> list[Row]:
    """Check, then time and weigh every way on one file."""
    path.write_bytes(data)
    functions = ways(data, path)
    answers = {way: function() for way, function in functions.items()}
    check(answers)
    times = interleaved(functions, rounds=rounds)
    rows = []
    for way, function in functions.items():
        output = f"{answers[way].dtype} {'x'.join(map(str, answers[way].shape))}"
        ratio = times[MMDET][1] / times[way][1]
        rows.append(Row(case, len(data), way, output, *times[way], ratio, peak_bytes(function)))
    return rows


def interleaved(functions: dict[str, Way], *, rounds: int) -> dict[str, tuple[float, float]]:
    """Return each way's median milliseconds, clock and processor; every way has its turn in each round."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in functions}
    for _ in range(rounds):
        for way, function in functions.items():
            for _ in range(_RUNS):
                begin = time.perf_counter(), time.process_time()
                function()
                times[way].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    clocks = {way: zip(*pairs, strict=True) for way, pairs in times.items()}
    return {way: (1e3 * statistics.median(wall), 1e3 * statistics.median(cpu)) for way, (wall, cpu) in clocks.items()}


def table(rows: Sequence[Row]) -> str:
    """Format the rows of one case for people."""
    lines = [f"{rows[0].case}, {rows[0].file_bytes:,} bytes"]
    lines.append(f"  {'':<30}{'median ms':>10}{'cpu ms':>9}{'mmdet /':>9}{'peak MB':>9}")
    for row in rows:
        times = f"{row.median_ms:>10.2f}{row.cpu_ms:>9.2f}{row.ratio:>9.2f}"
        lines.append(f"  {row.way:<30}{times}{row.peak_bytes / 1e6:>9.1f}  {row.output}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preprocess", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", help="folder of the CSV")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # of mmdet, about torch
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    facts = {**machine.describe(), "threads": "1"}
    print(*(f"{name}: {value}" for name, value in facts.items()), sep="\n", flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for case, data in files():
            rows += measure(case, data, Path(folder) / "image", rounds=arguments.rounds)
            print(table([row for row in rows if row.case == case]), flush=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_csv([asdict(row) for row in rows], arguments.results / "preprocess.csv")
    write_csv([{"name": k, "value": v} for k, v in facts.items()], arguments.results / "preprocess_machine.csv")


if __name__ == "__main__":
    main()
