"""What is given to `m2f export` in place of a configuration and a checkpoint, or of a Hugging Face folder."""

import re
from pathlib import Path

import pytest
from exports import m2f_export
from permissions import unprivileged
from sources import CHECKPOINT, CONFIG

from m2f_export.export_errors import ExportError
from m2f_export.sources.recognise import recognise

pytestmark = pytest.mark.torch  # the command needs it

DETECTRON2 = "_BASE_: Base-COCO-InstanceSegmentation.yaml\nMODEL:\n  META_ARCHITECTURE: MaskFormer\n"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4838904\n"
MMENGINE = "model:\n  type: Mask2Former\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with what people have."""
    monkeypatch.chdir(tmp_path)
    files = {
        "pointer.onnx": POINTER, "pointer.py": POINTER,
        "c.py": "model = dict(type='Mask2Former')", "w.pth": "x", "w.onnx": "x", "w.pkl": "x",
        "maskformer2.yaml": DETECTRON2, "mmengine.yaml": MMENGINE, "model.zip": "PK", "empty.py": "",
        "hf/config.json": "{}", "hf/model.safetensors": "x", "hf/preprocessor_config.json": "{}",
        "work_dirs/c.py": "x", "work_dirs/epoch_12.pth": "x", "weights/w.pth": "x", "empty/.gitkeep": "",
        "models--facebook--mask2former/snapshots/1a2b/config.json": "{}", "served/mask2former/config.pbtxt": "x",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "gone").symlink_to("blobs/1")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("c.py", "w.pth"), "mmdetection"),
        (("mmengine.yaml", "w.pth"), "mmdetection"),
        (("maskformer2.yaml", "w.pkl"), "detectron2"),
        (("maskformer2.yaml", "w.onnx"), "detectron2"),
        (("c.py", "w.onnx"), "ONNX"),
        (("hf",), "Hugging Face"),
    ],
)
def test_what_is_right_is_taken(here, arguments, kind):
    model, *weights = (here / name for name in arguments)
    assert recognise(model, *weights or [None]) == kind


FAULTS = {
    "hub": (["facebook/mask2former-swin-tiny"], r"^Error: facebook/mask2former-swin-tiny: no such file or folder\. "
            r".*hf download facebook/mask2former-swin-tiny --local-dir DIR$"),
    "hub, with a checkpoint": (["facebook/mask2former", "w.pth"], "download it first"),
    "no folder": (["work_dir/"], "^Error: work_dir: no such file or folder$"),
    "no configuration": (["configs/c.py", "w.pth"], r"^Error: configs/c\.py: no such file or folder$"),
    "no checkpoint": (["c.py", "epoch.pth"], r"^Error: epoch\.pth: no such file or folder$"),
    "url": (["https://huggingface.co/facebook/m"], r"^Error: https://huggingface\.co/facebook/m: m2f downloads"),
    "url of a checkpoint": (["c.py", "http://a.b/w.pth"], r"^Error: http://a\.b/w\.pth: m2f downloads nothing"),
    "bucket": (["s3://models/m"], "^Error: s3://models/m: m2f downloads nothing; download the model first"),
    "dangling": (["gone"], "^Error: gone is a link to blobs/1, which does not exist$"),
    "folder and checkpoint": (["hf", "w.pth"], "hf is a folder and holds its weights: w.pth is one too many"),
    "work folder": (["work_dirs"], r"two files: m2f export work_dirs/c\.py work_dirs/epoch_12\.pth$"),
    "checkpoint's folder": (["weights"], r"two files: m2f export FILE weights/w\.pth$"),
    "empty folder": (["empty"], r"^Error: empty/config\.json: no such file; a Hugging Face folder has one$"),
    "the hub's cache": (["models--facebook--mask2former"], r"Give the folder inside models--facebook--mask2former/"),
    "repository": (["served"], r"This is a model repository: m2f serve --model-repository served$"),
    "changed places": (["w.pth", "c.py"], r"the configuration comes first: m2f export c\.py w\.pth$"),
    "onnx first": (["w.onnx", "c.py"], r"the configuration comes first: m2f export c\.py w\.onnx$"),
    "configuration alone": (["c.py"], r"c\.py needs its checkpoint: m2f export c\.py CHECKPOINT$"),
    "checkpoint alone": (["w.pth"], r"w\.pth needs its configuration too: m2f export CONFIG w\.pth$"),
    "onnx alone": (["w.onnx"], r"w\.onnx needs its configuration too"),
    "part of a folder": (["hf/config.json", "hf/model.safetensors"], r"give the folder: m2f export hf$"),
    "weights of a folder": (["hf/model.safetensors"], r"give the folder: m2f export hf$"),
    "archive": (["model.zip", "w.pth"], r"model\.zip is an archive: unpack it first$"),
    "a base that is gone": (["maskformer2.yaml", "w.pkl"], r"maskformer2\.yaml: _BASE_: Base-COCO-.*: no such file$"),
    "yaml alone": (["maskformer2.yaml"], r"needs its checkpoint: m2f export maskformer2\.yaml CHECKPOINT$"),
    "empty": (["empty.py", "w.pth"], r"empty\.py is empty"),
    "a folder of checkpoints": (["c.py", "weights"], r"a folder; give a checkpoint in it, such as weights/w\.pth$"),
    "two folders": (["c.py", "empty"], r"empty is a folder; allowed: a file$"),
    "pointer to an onnx": (["c.py", "pointer.onnx"], r"pointer\.onnx is a Git LFS pointer, .*: git lfs install"),
    "pointer to a configuration": (["pointer.py", "w.pth"], r"pointer\.py is a Git LFS pointer"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.usefixtures("here")
def test_what_is_wrong_is_said_in_a_line_with_what_to_give(case):
    arguments, message = FAULTS[case]
    result = m2f_export(*arguments, "--onnx", "model.onnx")
    assert result.exit_code == 1
    assert re.search(message, result.stderr.strip()), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert not Path("model.onnx").exists()


def test_a_folder_without_permissions_is_named(here):
    (here / "hf").chmod(0)
    with unprivileged(here), pytest.raises(ExportError, match="hf cannot be read: Permission denied"):
        recognise(here / "hf", None)
    with unprivileged(here), pytest.raises(ExportError, match=r"config\.json cannot be read: Permission denied"):
        recognise(here / "hf" / "config.json", here / "w.pth")


def test_a_loop_of_links_is_named(here):
    (here / "loop").symlink_to("loop")
    with pytest.raises(ExportError, match="loop cannot be read: Too many levels of symbolic links"):
        recognise(here / "loop", None)


def test_a_link_to_a_folder_is_a_folder(here):
    (here / "latest").symlink_to("hf")
    assert recognise(here / "latest", None) == "Hugging Face"


def test_names_of_the_embedded_model_are_right():
    assert recognise(CONFIG, CHECKPOINT) == "mmdetection"
