"""The real server on the real repository, once for the whole run."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

from m2f_server import serve

for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
    os.environ.pop(name, None)  # what is printed is compared
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost,h"
hypothesis.settings.register_profile("m2f", deadline=None)  # a machine may stall
hypothesis.settings.load_profile("m2f")

ROOT = Path(__file__).parents[1]
IMAGES = sorted(path for path in (ROOT / "examples/images").iterdir() if path.suffix in (".jpg", ".png", ".webp"))


@pytest.fixture(scope="session")
def server():
    """`tritonserver` with the embedded model on ONNX Runtime, on free loopback ports."""
    with serve(
        model_repository=ROOT / "model_repository", config_name="cpu", http_port=0, grpc_port=0, metrics_port=0
    ) as running:
        yield running


@pytest.fixture(scope="session")
def image_files():
    """Encoded images of different sizes and formats."""
    return [path.read_bytes() for path in IMAGES]


@pytest.fixture(scope="session")
def evaluate():
    """The module that computes mask AP: examples/shapes/evaluate.py."""
    folder = str(ROOT / "examples/shapes")
    sys.path.insert(0, folder)
    import evaluate

    yield evaluate
    sys.path.remove(folder)
