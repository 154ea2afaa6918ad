"""The native kernel: there where there is a compiler, sound under the sanitizers, and done without elsewhere."""

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
from m2f.postprocess import postprocess
from m2f.rle import decode
from m2f.settings import Settings

COMPILER = shlex.split(os.environ.get("CC", "cc"))[0]
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs a C compiler ({COMPILER})")


@needs_compiler
def test_the_package_was_built_with_its_kernel():
    assert native.kernels()[0] != native.NUMPY


def test_without_the_library_numpy_does_it_all(monkeypatch, tmp_path):
    cls_logits, mask_logits = blobs(np.random.default_rng(0))
    arguments = {"img_shape": (96, 128), "ori_shape": (50, 70), "settings": Settings()}
    expected = postprocess(cls_logits, mask_logits, **arguments)
    monkeypatch.setattr(native, "_library", native._load(tmp_path / "none.so"))
    assert native.kernels() == (native.NUMPY,)
    got = postprocess(cls_logits, mask_logits, **arguments)
    assert got.rle == expected.rle
    np.testing.assert_array_equal(decode(got.rle[0], 50, 70), decode(expected.rle[0], 50, 70))
    np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-6)


def test_a_library_for_another_machine_is_left_alone(tmp_path):
    (tmp_path / "kernel.so").write_bytes(b"\x7fELF, but no more")
    assert native._load(tmp_path / "kernel.so") is None


@needs_compiler
def test_the_sanitizers_find_no_fault():
    fuzz = Path(__file__).with_name("fuzz_kernel.py")
    command = [sys.executable, "-W", "ignore", fuzz, "--seconds", "10", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "no fault" in done.stdout
