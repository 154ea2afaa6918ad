"""What tests share: the real server on the real repository, certificates, a front, deploy configs."""

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import hypothesis
import pytest
from certificates import make_certificates
from deploy_configs import DEPLOY
from nginx_front import configure, running

for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
    os.environ.pop(name, None)  # what is printed is compared
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost,h"
# No deadline: a machine may stall. The same examples everywhere, except in `make chaos`, which looks for new ones.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("new", deadline=None)
hypothesis.settings.load_profile("same")

ROOT = Path(__file__).parents[1]
NEED_EXPORT = (
    "doctor",
    "engine",
    "export_repository",
    "graph",
    "head",
    "huggingface_source",
    "ladder",
    "onnx_source",
    "precision",
    "served_engine",
    "rollout",
    "two_exports",
)
collect_ignore = []  # files that cannot be imported here
if importlib.util.find_spec("torch") is None:  # without the extra `export`
    collect_ignore += [f"test_{name}.py" for name in NEED_EXPORT]
if importlib.util.find_spec("ray") is None:  # outside the environment of `make test-ray`
    collect_ignore += ["test_examples_ray.py"]
IMAGES = sorted(path for path in (ROOT / "examples/images").iterdir() if path.suffix in (".jpg", ".png", ".webp"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Run the files with slow tests first: the worker that begins one at the end keeps the others waiting."""
    slow = {item.path for item in items if item.get_closest_marker("more")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item):
    """Give PyTorch one thread: two workers share the cores, and threads that wait for each other spin."""
    if item.get_closest_marker("torch"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def server():
    """`tritonserver` with the embedded model on a processor, on free loopback ports; one for each worker."""
    from m2f_server import serve

    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with serve(model_repository=ROOT / "model_repository", config_name="cpu", **ports) as started:
        yield started


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


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A folder with an authority, and a server's and a client's certificate of it; `other` is unknown to it."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    return folder


@pytest.fixture
def make_front(tmp_path, server, certificates):
    """Start a front whose configuration has some figures replaced."""
    with contextlib.ExitStack() as stack:

        def make(*, mutual=False, **changes):
            port = configure(tmp_path / "nginx", server, certificates, changes)
            if mutual:
                shutil.copy(tmp_path / "nginx/mtls.conf", tmp_path / "nginx/m2f.d")
            return stack.enter_context(running(tmp_path / "nginx", port))

        yield make


@pytest.fixture(scope="session")
def deploy_config(tmp_path_factory):
    """A deploy config of the usual kind, in a file."""
    path = tmp_path_factory.mktemp("deploy") / "deploy_config.json"
    path.write_text(json.dumps(DEPLOY))
    return path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder for what is made once for all workers, and a lock to hold while making it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    @contextlib.contextmanager
    def locked(name):
        (folder / name).mkdir(exist_ok=True)
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder / name

    return locked


@pytest.fixture(scope="session")
def mmdeploys_onnx(shared_folder):
    """What MMDeploy makes of the embedded model for ONNX Runtime."""
    from mmdeploy_exporter import mmdeploy_export

    with shared_folder("mmdeploy") as folder:
        done = folder / "end2end.onnx"
        return done if done.exists() else mmdeploy_export(folder, "onnxruntime")


@pytest.fixture(scope="session")
def exported(shared_folder):
    """The embedded checkpoint as a repository in half precision with its head beside it, and the report."""
    from exports import export_embedded

    with shared_folder("exported") as folder:
        return export_embedded(folder)


@pytest.fixture(scope="session")
def export_server(exported):
    """The server on that repository; one for each worker."""
    from m2f_server import serve

    with serve(model_repository=exported[0], config_name="cpu", http_port=0, grpc_port=0, metrics_port=0) as started:
        yield started
