"""The weights of a checkpoint, whatever the training wrapped around them."""

import collections
import os
import pickle
import random
import re
import shutil
import zipfile
from argparse import Namespace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from exports import m2f_export
from mutate import mutated
from sources import CHECKPOINT, CONFIG
from trained import OTHER, TRAINED, behind, network, renamed

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from m2f_export.export_errors import ExportError  # noqa: E402
from m2f_export.sources.checkpoint import load_weights, read_checkpoint, stated_classes  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


def nested(weights):
    """Dictionaries in dictionaries, one for each part of a name."""
    tree = {}
    for name, tensor in weights.items():
        *parts, last = name.split(".")
        inner = tree
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = tensor
    return tree


class AttributeDict(dict):
    """A dictionary of another package, as Lightning pickles its hyperparameters."""


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
AVERAGED = {"steps": torch.tensor(7), **behind("module.")}
DOUBLED = behind("module.", behind("module."))

WRAPPED = {
    "mmengine": {"state_dict": TRAINED, "meta": {"epoch": 1}, "optimizer": OPTIMIZER, "message_hub": {}},
    "weights alone": TRAINED,
    "an ordered dictionary": collections.OrderedDict(TRAINED),
    "DistributedDataParallel": {"state_dict": behind("module.")},
    "DistributedDataParallel, alone": behind("module."),
    "wrapped twice": {"state_dict": DOUBLED},
    "Lightning": {"state_dict": behind("model.") | {"loss.weight": torch.ones(2)}, "pytorch-lightning_version": "2.0"},
    "Lightning, parallel": {"state_dict": behind("model.module.")},
    "parallel Lightning": {"state_dict": behind("module.model.")},
    "torch.compile": {"state_dict": behind("_orig_mod.")},
    "torch.compile in DistributedDataParallel": {"state_dict": behind("module._orig_mod.")},
    "a part compiled": renamed(lambda name: name.replace("backbone.", "backbone._orig_mod.")),
    "each part parallel": renamed(lambda name: name.replace(".", ".module.", 1)),
    "FSDP": behind("_fsdp_wrapped_module.", renamed(lambda name: name.replace(".0.", ".0._fsdp_wrapped_module."))),
    "checkpointed activations": renamed(lambda name: name.replace("backbone.", "backbone._checkpoint_wrapped_module.")),
    "any other prefix": {"state_dict": behind("detector.net.")},
    "model": {"model": TRAINED, "optimizer": OPTIMIZER, "scheduler": {"last_epoch": 3}, "epoch": 9},
    "model_state_dict": {"model_state_dict": behind("module."), "loss": 0.1},
    "nested": {"checkpoint": {"model": {"state_dict": TRAINED}}},
    "nested in state_dict": {"state_dict": {"model": TRAINED}},
    "a dictionary for each module": {"state_dict": nested(TRAINED)},
    "averaged weights beside others": {"state_dict": TRAINED, "ema_state_dict": behind("module.", OTHER)},
    "averaged weights only": {"ema_state_dict": AVERAGED, "meta": {}},
    "averaged weights alone": AVERAGED,
    "objects of other packages": {
        "state_dict": TRAINED, "args": Namespace(lr=0.1), "hyper_parameters": AttributeDict(lr=0.1), "when": Path("x"),
        "counts": collections.defaultdict(int, {"seen": 3}), "history": np.ones(3), "rates": [Fraction(1, 2)],
    },
    "an empty state_dict": {"state_dict": {}, "model": TRAINED},
    "without counters": {"state_dict": {k: v for k, v in TRAINED.items() if not k.endswith("num_batches_tracked")}},
    "frozen batch norms": {
        "model": {k: v for k, v in TRAINED.items() if not k.endswith("num_batches_tracked")},
        "teacher": {"epoch": 3},
    },
    "counters that the network has not": TRAINED | {"head.num_batches_tracked": torch.tensor(3)},
    "mmcv's copies": {"state_dict": TRAINED | renamed(lambda name: "ema_" + name.replace(".", "_"), OTHER)},
    "mmcv's copies, parallel": {"state_dict": behind("module.", TRAINED | {"ema_head_weight": OTHER["head.weight"]})},
    "network": {"network": TRAINED, "optimizer": OPTIMIZER},
    "state_dict before others": {"state_dict": TRAINED, "last": OTHER},
    "model and ema": {"model": OTHER, "ema": TRAINED},
    "model and model_ema": {"model": OTHER, "model_ema": behind("module.")},
    "ema without counters": {
        "model": OTHER, "ema": {k: v for k, v in TRAINED.items() if not k.endswith("num_batches_tracked")},
    },
    "nested ema": {"ema": {"module": TRAINED, "updates": 100}, "model": OTHER, "scaler": {"scale": 1.0}},
    "timm": {"state_dict": OTHER, "state_dict_ema": TRAINED},
    "Lightning with averaged weights": {"state_dict": behind("model.", OTHER) | behind("ema_model.module.")},
    "student and teacher": {"state_dict": behind("student.", OTHER) | behind("teacher.")},
    "student alone": {"state_dict": behind("student.")},
    "bfloat16": {name: t.bfloat16() if t.is_floating_point() else t for name, t in TRAINED.items()},
    "half precision": {name: t.half() if t.is_floating_point() else t for name, t in TRAINED.items()},
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
def test_wrapped_weights_are_found(tmp_path, case):
    torch.save(WRAPPED[case], tmp_path / "w.pth")
    loaded = network()
    load_weights(loaded, read_checkpoint(tmp_path / "w.pth"), tmp_path / "w.pth", tmp_path / "c.py")
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(
            tensor, TRAINED[name], atol=2e-2 if case in ("half precision", "bfloat16") else 0, rtol=0
        )


@pytest.mark.parametrize(("case", "note"), [
    ("timm", "'state_dict_ema.' is taken, not 'state_dict.'"),
    ("student and teacher", "'state_dict.teacher.' is taken, not 'state_dict.student.'"),
    ("averaged weights beside others", None), ("mmengine", None), ("mmcv's copies", None),
])  # fmt: skip
def test_which_of_several_sets_of_weights_was_taken_is_said(tmp_path, case, note):
    said = load_weights(network(), WRAPPED[case], tmp_path / "w.pth", tmp_path / "c.py")
    assert said == ((f"{tmp_path / 'w.pth'} has several sets of weights: {note}",) if note else ())


def test_the_prefix_that_mmengine_strips_is_stripped_to_the_same_weights(tmp_path):
    """Against mmengine's own loader."""
    from mmengine.runner import load_checkpoint

    torch.save({"state_dict": behind("module.")}, tmp_path / "w.pth")
    theirs, ours = network(), network()
    load_checkpoint(theirs, str(tmp_path / "w.pth"), map_location="cpu")
    load_weights(ours, read_checkpoint(tmp_path / "w.pth"), tmp_path / "w.pth", tmp_path / "c.py")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])


def test_the_form_before_pytorch_1_6_and_safetensors_are_read(tmp_path):
    torch.save({"state_dict": TRAINED}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(TRAINED, tmp_path / "w.safetensors")
    shutil.copy(tmp_path / "w.safetensors", tmp_path / "w.pth")  # the content says what it is, not the name
    for name in ("old.pth", "w.safetensors", "w.pth"):
        loaded = network()
        load_weights(loaded, read_checkpoint(tmp_path / name), tmp_path / name, tmp_path / "c.py")
        assert torch.equal(loaded["head"].weight, TRAINED["head.weight"])


def without(*names):
    return {name: tensor for name, tensor in TRAINED.items() if name not in names}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"epoch": 3}, r"w\.pth holds no weights: there is no tensor in it; its keys: epoch$"),
        ({}, r"holds no weights: .* its keys: none$"),
        ({"state_dict": {"head.weight": 1}}, "holds no weights"),
        ({"neck.w": torch.ones(1)}, r"w\.pth does not fit .*c\.py: it has neck\.w; needed: backbone\.0\.weight, "),
        (without("head.bias"), r"w\.pth does not fit .*c\.py: 1 missing \(head\.bias\)$"),
        (
            renamed(lambda name: name.replace("backbone", "body")),
            r": 6 missing \(backbone\.0\.weight, backbone\.0\.bias, backbone\.1\.weight, …\); 6 unexpected \(body\.0",
        ),
        (
            {"state_dict": behind("module.", TRAINED | {"neck": torch.ones(1)})},
            r": 1 unexpected \(state_dict\.module\.neck\)$",
        ),
        (
            TRAINED | {"head.weight": torch.ones(3, 4), "head.bias": torch.ones(3)},
            r": 2 of another shape \(head\.weight \[3, 4\] for \[2, 4\], head\.bias \[3\] for \[2\]\)$",
        ),
        (TRAINED | {"head.weight": torch.ones(1).expand(1 << 20, 1 << 20)}, r"1 of another shape"),
        (
            {"model": TRAINED, "best": OTHER},
            r"w\.pth holds weights for .*c\.py more than once, under 'best\.' and 'model\.'; allowed: once",
        ),
        (
            {"ema": OTHER, "model": TRAINED, "teacher": TRAINED},
            r"w\.pth holds weights for .*c\.py more than once, under 'ema\.' and 'teacher\.'; allowed: once",
        ),
        (
            TRAINED | {"head.bias": torch.tensor([1.0, float("nan")])},
            r"w\.pth: 1 weights hold NaN or infinity \(head\.bias\): the training diverged",
        ),
        ({"head.bias": torch.ones(2).to_sparse(), **without("head.bias")}, r"w\.pth cannot be loaded: "),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named_in_a_few_words(tmp_path, contents, message):
    torch.save(contents, tmp_path / "w.pth")
    with pytest.raises(ExportError, match=message) as failure:
        load_weights(network(), read_checkpoint(tmp_path / "w.pth"), tmp_path / "w.pth", tmp_path / "c.py")
    assert len(str(failure.value)) < 600


# --- files ------------------------------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4838904\n"


class Whole:
    """Pickles as an object: `torch.save(model)`."""

    def __reduce__(self):
        return (Fraction, (1, 2))


def zipped(path, name="model/config.json", kind=zipfile.ZIP_STORED, content=b"{}"):
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr(name, content)


def truncated(path):
    path.write_bytes(CHECKPOINT.read_bytes()[:100_000])


def tarred(path):
    shutil.make_archive(path.parent / "t", "tar", path.parent, ".")
    (path.parent / "t.tar").rename(path)


FILES = {
    "missing": (lambda _: None, r"w\.pth: no such file"),
    "empty": (lambda path: path.write_bytes(b""), r"w\.pth is empty: a copy or a download was interrupted"),
    "text": (lambda path: path.write_bytes(b"epoch_12.pth"), r"w\.pth is not a checkpoint .*: it is neither what t"),
    "an old file with objects": (
        lambda path: torch.save({"w": Namespace()}, path, _use_new_zipfile_serialization=False),
        r"torch can read: Unsupported global: GLOBAL argparse\.Namespace was not .*default; allowed: weights alone",
    ),
    "pointer": (lambda path: path.write_bytes(POINTER), r"w\.pth is a Git LFS pointer, .*git lfs pull"),
    "page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>"), r"w\.pth is a web page"),
    "folder": (lambda path: path.mkdir(), r"w\.pth is a folder; allowed: a file"),
    "pipe": (os.mkfifo, r"w\.pth is not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), r"w\.pth is not a regular file"),
    "dangling": (lambda path: path.symlink_to("blobs/1"), r"w\.pth is a link to blobs/1, which does not exist"),
    "circle": (lambda path: path.symlink_to(path), r"w\.pth cannot be read: Too many levels of symbolic links"),
    "truncated": (truncated, r"w\.pth is not a checkpoint .*: it is incomplete: a copy or a download"),
    "zip": (zipped, r"w\.pth is not a checkpoint .*: it is a zip archive: unpack it"),
    "bomb": (lambda path: zipped(path, "w/data.pkl", zipfile.ZIP_DEFLATED, bytes(10_000_000)), r"it is compressed"),
    "tar": (tarred, r"it is an archive: unpack it"),
    "detectron2": (
        lambda path: path.write_bytes(pickle.dumps({"model": {"w": np.ones(2)}, "__author__": "x"})),
        r"it is a pickle, as detectron2 writes them; allowed: .*\.pth",
    ),
    "list": (lambda path: torch.save([1, 2], path), r"w\.pth holds no weights, but a list; allowed: a dictionary"),
    "object": (lambda path: torch.save(Whole(), path), r"w\.pth holds no weights, but an object of Python"),
    "safetensors": (lambda path: path.write_bytes(b'\xff\xff\xff\xff\0\0\0\0{"a"'), r"w\.pth is not a checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, case):
    write, message = FILES[case]
    write(tmp_path / "w.pth")
    with pytest.raises(ExportError, match=message):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("files", [100, pytest.param(8000, marks=pytest.mark.chaos)])
def test_damaged_files_are_loaded_or_refused_in_a_few_words(tmp_path, files):
    path, good = tmp_path / "w.pth", []
    for write in (
        lambda: torch.save({"state_dict": behind("module."), "meta": {"CLASSES": ("a", "b")}}, path),
        lambda: torch.save(TRAINED, path, _use_new_zipfile_serialization=False),
        lambda: save_file(TRAINED, path),
    ):
        write()
        good.append(path.read_bytes())
    rng = random.Random(0)
    for _ in range(files):
        path.write_bytes(mutated(rng, rng.choice(good), good))
        try:
            contents = read_checkpoint(path)
            stated_classes(contents, path)
            load_weights(network(), contents, path, tmp_path / "c.py")
        except ExportError as refused:
            assert len(str(refused)) < 1000  # noqa: PT017 (most are refused, some are not)


@pytest.mark.parametrize("case", ["pointer", "truncated", "detectron2", "list"])
def test_the_command_names_it_too(tmp_path, case):
    write, message = FILES[case]
    write(tmp_path / "w.pth")
    result = m2f_export(CONFIG, tmp_path / "w.pth", "--onnx", tmp_path / "model.onnx")
    assert result.exit_code == 1
    assert_one_message(result, message)


def assert_one_message(result, message):
    """One line, without a traceback."""
    lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("read: ")]
    assert len(lines) == 1, result.stderr
    assert re.search(message, lines[0]), result.stderr


@pytest.mark.parametrize(
    ("meta", "classes"),
    [
        ({"dataset_meta": {"classes": ("a", "b")}}, ("a", "b")),
        ({"CLASSES": ["a"]}, ("a",)),
        ({"CLASSES": "rings"}, ("rings",)),
        ({"dataset_meta": None}, ()),
        ({"dataset_meta": {"classes": None}}, ()),
        ({"dataset_meta": {"classes": {"0": "a"}}}, ()),
        (None, ()),
        ([1], ()),
    ],
)
def test_class_names_of_a_checkpoint(tmp_path, meta, classes):
    assert stated_classes({"meta": meta}, tmp_path / "w.pth") == classes


def test_class_names_that_are_not_text_are_refused(tmp_path):
    with pytest.raises(
        ExportError, match=r"w\.pth: the classes in its 'meta': the name of class 1 is 7; allowed: text"
    ):
        stated_classes({"meta": {"CLASSES": ("a", 7)}}, tmp_path / "w.pth")


def test_the_command_takes_wrapped_weights(tmp_path):
    """As distributed training of a compiled model writes them: only the size is wrong, which is looked at later."""
    weights = torch.load(CHECKPOINT, weights_only=True)["state_dict"]
    torch.save({"state_dict": behind("module._orig_mod.", weights)}, tmp_path / "w.pth")
    result = m2f_export(CONFIG, tmp_path / "w.pth", "--onnx", tmp_path / "model.onnx", "--size", 100, 100)
    assert_one_message(result, r"multiples of 32; got \(100, 100\)")
