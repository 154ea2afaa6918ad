"""Nothing shipped runs what it reads (what ruff's rules of bandit do not see of it); known holes are out of reach."""

import ast
import contextlib
import io
from pathlib import Path

import cv2
import pytest
from PIL import Image

from m2f.errors import InputError
from m2f.image import decode_image

ROOT = Path(__file__).parents[1]
SHIPPED = [path for folder in ("src", "client", "export", "model_repository") for path in (ROOT / folder).rglob("*.py")]
FORBIDDEN = {
    "allow_pickle": {True},  # numpy.load
    "weights_only": {False, None},  # torch.load
    "trust_remote_code": {True},  # Hugging Face: a checkpoint brings code along
    "shell": {True},
}


def findings(source):
    """Line and reason of each call that could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        for name, bad in FORBIDDEN.items():
            value = given.get(name)
            if isinstance(value, ast.Constant) and value.value in bad:
                yield node.lineno, f"{name}={value.value}"
        called = ast.unparse(node.func)
        if called == "torch.load" and "weights_only" not in given:
            yield node.lineno, "torch.load without weights_only"
        if called in {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "os.system"}:
            yield node.lineno, called


def test_nothing_runs_what_it_reads():
    found = {str(path.relative_to(ROOT)): list(findings(path.read_text())) for path in SHIPPED}
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "AutoModel.from_pretrained(f, trust_remote_code=True)",
        "subprocess.run(command, shell=True)",
        "exec(text)",
        "yaml.load(text, Loader)",
    ],
)
def test_it_would_be_seen(source):
    assert list(findings(source))


def test_the_rules_of_bandit_are_on():
    configuration = (ROOT / "pyproject.toml").read_text()
    (selected,) = [line for line in configuration.splitlines() if line.startswith("select = ")]
    assert '"S"' in selected


@pytest.mark.parametrize("disguise", [b"", b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("extension", ["jp2", "j2k"])
def test_jpeg_2000_does_not_reach_opencv(monkeypatch, extension, disguise):
    """CVE-2025-53644 of OpenCV 4.11: only WebP is decoded by it (SECURITY.md)."""
    seen = []
    original = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: seen.append(bytes(data)) or original(data, flags))
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG2000", no_jp2=extension == "j2k")
    with contextlib.suppress(InputError):
        decode_image(disguise + buffer.getvalue(), max_pixels=1 << 20)
        pytest.fail("it was decoded")
    assert all(data[:4] == b"RIFF" and data[8:12] == b"WEBP" for data in seen)
