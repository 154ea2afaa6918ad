"""Run the native kernel under AddressSanitizer and UBSan on random scenes and random RLE, for some seconds.

python tests/fuzz_kernel.py --seconds 600    (`make fuzz`; tests/test_kernel.py does it for a short while)

A build of the kernel with both sanitizers takes the place of the package's own. The sanitizers stop the process at the
first fault and say where. Every answer is also held against numpy's.
"""

import argparse
import ctypes
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scenes import KINDS, QUERIES, STRIDE, sizes

from m2f import native, rle
from m2f.batch import dense_masks
from m2f.errors import InputError
from m2f.kernels import NUMPY
from m2f.label_maps import probability_blocks
from m2f.logits import ImageLogits
from m2f.masks import sample_masks
from m2f.profiles import grid_taps

ROOT = Path(__file__).parents[1]
SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def main():
    """Fuzz, in a process that has the sanitizer's runtime loaded before all else."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--library", type=Path)
    options = parser.parse_args()
    if options.library:
        fuzz(options.library, options.seconds, options.seed)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "kernel.so")
        build(library)
        command = [sys.executable, __file__, "--seconds", str(options.seconds), "--seed", str(options.seed)]
        environment = {"LD_PRELOAD": runtime(), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
        return subprocess.run(
            [*command, "--library", library], env={**os.environ, **environment}, check=False
        ).returncode


def build(library):
    """Compile the kernel as the package does, and with both sanitizers."""
    sys.path.insert(0, str(ROOT))
    from hatch_build import compile_kernel

    compile_kernel(ROOT / "src/m2f/kernel", library, *SANITIZERS)


def runtime():
    """Return the path of the compiler's AddressSanitizer."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    found = subprocess.run([*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def fuzz(library, seconds, seed):
    """Draw scenes and strings until the time is over."""
    kernels = [replace(kernel, usual_edges=64) for kernel in native.load(library)]  # so that edges run out of room
    assert hasattr(ctypes.CDLL(None), "__asan_init"), "the sanitizer is not there"
    ends, number = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        rng = np.random.default_rng([seed, number])
        try:
            with np.errstate(all="ignore"):
                sample(rng, kernels)
            decode(rng, kernels[0])
            decode_at_sizes(rng, kernels[0])
        except BaseException:
            print(f"failed at seed {seed}, number {number}", file=sys.stderr)
            raise
        number += 1
    print(f"{number} scenes, {', '.join(map(str, kernels))}: no fault")


def sample(rng, kernels):
    """Sample, encode, decode and compare the masks of a scene with every kernel."""
    cells, img_shape, ori_shape = sizes(rng)
    logits = np.ascontiguousarray(KINDS[rng.integers(len(KINDS))](rng, cells), np.float32)
    queries = rng.integers(0, QUERIES, rng.integers(0, QUERIES + 1))
    cls_logits = np.zeros((len(logits), 2), np.float32)
    image = ImageLogits(cls_logits, logits, img_shape=img_shape, ori_shape=ori_shape, mask_stride=STRIDE)
    grid = [int(n) for n in rng.integers(1, 60, 2)] if rng.random() < 0.3 else None
    results = []
    for kernel in (*kernels, NUMPY):
        if grid:
            operator = kernel.taps_operator(cells, *map(grid_taps, image.geometry, grid))
        else:
            operator = kernel.operator(image.geometry)
        masks = sample_masks(logits, queries, operator, kernel=replace(kernel, threads=1 + len(queries) % 2))
        if kernel is not NUMPY:
            label(image, queries, kernel)
        counts = [masks.rle(i) for i in range(len(masks))]
        shared = [masks.intersection(0, i) for i in range(len(masks))]
        packed = [rle.decode(c, *ori_shape, packed=True, kernel=kernel).tobytes() for c in counts]
        results.append((counts, shared, packed, masks.boxes.tolist(), masks.areas.tolist()))
    assert all(result == results[0] for result in results)


def label(image, queries, kernel):
    """Let the queries compete for the pixels, in blocks of some rows."""
    for _, probabilities in probability_blocks(image, queries, kernel, max_values=1000):
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        areas, scores = np.zeros(len(queries), np.int64), np.linspace(1, 0.5, len(queries), dtype=np.float32)
        winners = kernel.compete(probabilities, scores, areas)
        np.testing.assert_array_equal(winners, NUMPY.compete(probabilities, scores, np.zeros_like(areas)))
        assert areas.sum() == (probabilities >= 0.5).sum()


def decode(rng, kernel):
    """Decode RLE with some bytes changed, and bytes that never were RLE."""
    height, width = (int(n) for n in rng.integers(1, 40, 2))
    if rng.random() < 0.5:
        counts = bytearray(rle.encode_mask(rng.random((height, width)) < rng.random()))
        for _ in range(rng.integers(0, 4)):
            counts[rng.integers(len(counts))] = rng.integers(256)
        counts = bytes(counts[: rng.integers(len(counts) + 1)])
    else:
        counts = rng.integers(40, 120, rng.integers(0, 30)).astype(np.uint8).tobytes()
    for packed in (False, True):
        answers = []
        for way in (kernel, NUMPY):
            try:
                answers.append(rle.decode(counts, height, width, packed=packed, kernel=way).tobytes())
            except InputError:
                answers.append(None)
        assert answers[0] == answers[1], counts


def decode_at_sizes(rng, kernel):
    """Decode the RLE of a mask at sizes that are none: sides are a client's, and two negative ones cover as much."""
    height, width = (int(n) for n in rng.integers(1, 12, 2))
    counts, room = rle.encode_mask(rng.random((height, width)) < rng.random()), height * width
    odd = [int(n) for n in rng.choice([-(2**31), -room, -height, -width, -1, 0, 1, height, 2**31 - 1], 2)]
    for sides in ((height, width), (-height, -width), (-1, -room), (0, width), (height, 0), odd):
        is_size, covers = min(sides) > 0, sides[0] * sides[1] == room
        for packed in (False, True):
            if covers or not is_size:  # the kernel leaves it to its caller that there is room
                pixels = np.zeros(sides if is_size else (height, width), np.uint8)
                assert kernel.decode_into(pixels, counts, *sides, packed=packed) == is_size, sides
            size, rows = np.array([(height, width), sides], np.int32), np.array([[b""], [counts]], object)
            try:
                masks, mask = dense_masks(rows, size, packed=packed, kernel=kernel), rle.decode(counts, height, width)
                assert masks.any() == mask.any()
                assert (is_size, covers) == (True, True), sides
            except InputError:
                assert not (is_size and covers), sides


if __name__ == "__main__":
    sys.exit(main())
