"""The kernels: the compiled one is there, sound under the sanitizers, and numpy does without it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from logits import blobs

from m2f import native
from m2f.kernels import BEST, KERNELS, NUMPY
from m2f.logits import ImageLogits
from m2f.postprocess import postprocess
from m2f.settings import Settings

COMPILER = shlex.split(os.environ.get("CC", "cc"))[0]
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs a C compiler ({COMPILER})")


@needs_compiler
def test_the_package_was_built_with_its_kernel():
    assert BEST is KERNELS[0] is not NUMPY
    assert [*map(str, native.load()), "numpy"] == [*map(str, KERNELS)]


def test_numpy_finds_the_same_instances():
    image = ImageLogits(*blobs(np.random.default_rng(0)), img_shape=(96, 128), ori_shape=(50, 70))
    expected, got = (postprocess(image, Settings(), kernel=kernel) for kernel in (BEST, NUMPY))
    assert got.rle == expected.rle
    np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-6)


def test_without_a_library_for_this_machine_there_is_no_native_kernel(tmp_path):
    assert native.load(tmp_path / "none.so") == ()
    (tmp_path / "kernel.so").write_bytes(b"\x7fELF, but no more")
    assert native.load(tmp_path / "kernel.so") == ()


@needs_compiler
@pytest.mark.more
def test_the_sanitizers_find_no_fault():
    fuzz = Path(__file__).with_name("fuzz_kernel.py")
    command = [sys.executable, "-W", "ignore", fuzz, "--seconds", "10", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "no fault" in done.stdout
