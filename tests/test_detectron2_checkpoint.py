"""Files of weights as detectron2 writes them, and pickles that are programs."""

import os
import pickle
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from m2f_export.export_errors import ExportError  # noqa: E402
from m2f_export.sources.detectron2_checkpoint import read_detectron2_checkpoint  # noqa: E402

pytestmark = pytest.mark.torch

WEIGHTS = {
    "backbone.a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "backbone.b": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "n": np.array(7, np.int64),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_arrays_is_read(tmp_path, protocol):
    path = tmp_path / "model_final.pkl"
    more = {"__author__": "Mask2Former", "scale": np.float32(3), "blob": b"\xff", "matching_heuristics": True}
    path.write_bytes(pickle.dumps({"model": WEIGHTS, **more}, protocol))
    read = read_detectron2_checkpoint(path)
    assert read.keys() == WEIGHTS.keys()
    for name, values in WEIGHTS.items():
        assert torch.equal(read[name], torch.from_numpy(np.array(values)))


def test_a_pickle_of_numpy_2_is_read(tmp_path):
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": WEIGHTS}, 2).replace(b"numpy.core.multiarray", b"numpy._core.multiarray"))
    assert read_detectron2_checkpoint(path).keys() == WEIGHTS.keys()


def test_arrays_without_a_model_around_them_are_read(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(WEIGHTS))
    assert read_detectron2_checkpoint(path).keys() == WEIGHTS.keys()


def test_only_the_model_of_a_training_is_read(tmp_path):
    path = tmp_path / "model_0000999.pth"
    tensors = {"sem_seg_head.adapter_1.weight": torch.ones(2)}
    torch.save({"model": tensors, "ema_state": tensors, "optimizer": {"state": {0: torch.zeros(2)}}}, path)
    assert list(read_detectron2_checkpoint(path)) == ["sem_seg_head.pixel_decoder.adapter_1.weight"]


def test_names_of_older_files_are_todays(tmp_path):
    path = tmp_path / "w.pkl"
    older = ["module.sem_seg_head.layer_1.weight", "sem_seg_head.predictor.static_query.weight", "backbone.norm0.bias"]
    path.write_bytes(pickle.dumps({"model": {name: np.ones(1) for name in older}}))
    assert list(read_detectron2_checkpoint(path)) == [
        "module.sem_seg_head.pixel_decoder.layer_1.weight", "sem_seg_head.predictor.query_feat.weight",
        "backbone.norm0.bias",
    ]  # fmt: skip


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickled(value):
    return pickle.dumps({"model": {"a": value}}, 4)


def hostile(made):
    """Files by what they do, and what is said of each."""
    allowed = "; allowed: dictionaries of numpy arrays"
    return {
        "a command": (pickled(Runs(os.mkdir, made)), r"it has posix\.mkdir" + allowed),
        "a nested name": (
            b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.", r"it has collections\.OrderedDict\.from"
        ),
        "code": (pickled(Runs(eval, f"__import__('os').mkdir({made!r})")), r"it has builtins\.eval" + allowed),
        "another of numpy's functions": (pickled(Runs(np.fromfile, "/dev/zero")), "it has numpy"),
        "tensors": (pickled(torch.ones(1)), r"it has torch\._utils\._rebuild_tensor_v2" + allowed),
        "a class": (b"\x80\x02csubprocess\nPopen\n.", r"it has subprocess\.Popen" + allowed),
        "numbers beyond its size": (b"\x80\x02}r\xff\xff\xff\x7f.", "it numbers a value 2147483647, in 9 bytes"),
        "a huge array": (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7f\x85c_codecs\nencode\n"
            b"X\x01\x00\x00\x00dX\x06\x00\x00\x00latin1\x86R\x87R.",
            "holds no weights, but a ndarray",
        ),
        "ndarray called": (b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.", "is not a pickle of weights: "),
        "half a file": (pickle.dumps(WEIGHTS)[:-30], "is not a pickle of weights: "),
        "a list": (pickle.dumps([1]), "holds no weights, but a list; allowed: a dictionary of arrays"),
    }  # fmt: skip


@pytest.mark.parametrize("case", hostile(""))
def test_a_pickle_that_is_a_program_is_refused_before_it_runs(tmp_path, case):
    made = tmp_path / "made"
    content, message = hostile(str(made))[case]
    path = tmp_path / "model_final.pkl"
    path.write_bytes(content)
    with pytest.raises(ExportError) as caught:
        read_detectron2_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert re.search(message, str(caught.value)), caught.value
    assert not made.exists()


def test_objects_in_an_array_are_no_weights(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.array(["x", 1], dtype=object), "b": np.ones(1)}}))
    read = read_detectron2_checkpoint(path)
    assert isinstance(read["b"], torch.Tensor)
    assert not isinstance(read["a"], torch.Tensor)
