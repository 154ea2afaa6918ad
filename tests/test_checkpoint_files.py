"""Checkpoints in several files, and hostile files of every kind."""

import collections
import json
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from trained import TRAINED, network  # noqa: E402

from m2f_export.export_errors import ExportError  # noqa: E402
from m2f_export.sources.checkpoint import bytes_of, load_weights, read_checkpoint  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


def write_shards(folder, save, suffix):
    """Write the weights in two files and an index, as accelerate and transformers do."""
    names = sorted(TRAINED)
    weight_map = {}
    for number, part in enumerate((names[:3], names[3:]), start=1):
        file = f"model-0000{number}-of-00002.{suffix}"
        save({name: TRAINED[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize(("save", "suffix"), [(torch.save, "bin"), (save_file, "safetensors")])
def test_weights_in_several_files_are_read_by_their_index(tmp_path, save, suffix):
    index = write_shards(tmp_path, save, suffix)
    loaded = network()
    load_weights(loaded, read_checkpoint(index), index, tmp_path / "c.py")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, TRAINED[name])
    assert bytes_of(index) == sum(path.stat().st_size for path in tmp_path.glob(f"*.{suffix}"))
    part = tmp_path / f"model-00001-of-00002.{suffix}"
    with pytest.raises(
        ExportError, match=r"missing .*; model-00001-of-.* is one of several files: give their index, \*"
    ):
        load_weights(network(), read_checkpoint(part), part, tmp_path / "c.py")
    part.unlink()
    with pytest.raises(ExportError, match=r"index\.json names 2 files, and 1 are missing: model-00001-of-00002"):
        read_checkpoint(index)


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is not JSON"), ("[]", "is not a JSON object"), ("{}", "has no 'weight_map'; allowed: an object"),
    ('{"weight_map": {"w": 3}}', "has no 'weight_map'"), ('{"weight_map": {"w": "../w.bin"}}', r"names '\.\./w\.bin'"),
    ('{"weight_map": {"w": "/etc/passwd"}}', "names '/etc/passwd'; allowed: files of weights beside it"),
    ('{"weight_map": {"w": "m.index.json"}}', r"names 'm\.index\.json'; allowed: files of weights"),
])  # fmt: skip
def test_an_index_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "m.index.json").write_text(content)
    with pytest.raises(ExportError, match=rf"m\.index\.json {message}"):
        read_checkpoint(tmp_path / "m.index.json")


class Hostile:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def hostile_zip(path, trace):
    torch.save({"state_dict": TRAINED, "optimizer": Hostile(trace)}, path)


def hostile_weights(path, trace):
    torch.save({"state_dict": TRAINED | {"head.bias": Hostile(trace)}}, path)


def hostile_old(path, trace):
    torch.save({"state_dict": TRAINED, "x": Hostile(trace)}, path, _use_new_zipfile_serialization=False)


def hostile_pickle(path, trace):
    path.write_bytes(pickle.dumps({"model": {"w": np.ones(2)}, "x": Hostile(trace)}))


def hostile_lightning(path, trace):
    torch.save({"state_dict": TRAINED, "hyper_parameters": collections.UserDict(x=Hostile(trace)),
                "callbacks": {"ModelCheckpoint": Hostile(trace)}}, path)  # fmt: skip


def hostile_torchscript(path, trace):  # noqa: ARG001 (its code is not Python's)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def hostile_shard(path, trace):
    hostile_zip(path.with_name("part.bin"), trace)
    path.write_text(json.dumps({"weight_map": {"head.bias": "part.bin"}}))


def hostile_safetensors(path, trace):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"x": "y"}})
    body = pickle.dumps(Hostile(trace)).ljust(8, b"\0")
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + body)


@pytest.mark.parametrize(("write", "name"), [
    (hostile_zip, "w.pth"), (hostile_weights, "w.pth"), (hostile_old, "w.pth"), (hostile_pickle, "w.pkl"),
    (hostile_lightning, "w.ckpt"), (hostile_torchscript, "w.pt"), (hostile_shard, "m.index.json"),
    (hostile_shard, "pytorch_model.bin.index.json"), (hostile_safetensors, "w.safetensors"),
])  # fmt: skip
def test_no_code_of_a_file_runs(tmp_path, write, name):
    """The file is read without what is no weight, or refused in a sentence."""
    trace = tmp_path / "trace"
    write(tmp_path / name, trace)
    try:
        load_weights(network(), read_checkpoint(tmp_path / name), tmp_path / name, tmp_path / "c.py")
    except ExportError as refused:
        assert name in str(refused) or "part.bin" in str(refused)  # noqa: PT017 (some are read)
        assert len(str(refused)) < 600  # noqa: PT017
    assert not trace.exists()
