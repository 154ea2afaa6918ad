"""`Result.save` and `Result.load`: the same arrays come back."""

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from m2f_client import M2FError, Result
from m2f_client.fake import result_of

stacks_of_masks = hnp.arrays(bool, st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9)))


def assert_same(one, other):
    assert list(one.outputs) == list(other.outputs)
    for name, array in one.outputs.items():
        back = other.outputs[name]
        assert (back.dtype, back.shape) == (array.dtype, array.shape), name
        assert back.tolist() == array.tolist(), name


@given(masks=stacks_of_masks)
@settings(deadline=None)
def test_round_trip(tmp_path_factory, masks):
    result = result_of(masks)
    path = tmp_path_factory.mktemp("results") / "a.npz"
    result.save(path)
    loaded = Result.load(path)
    assert_same(result, loaded)
    assert loaded.rle == result.rle
    assert np.array_equal(loaded.masks, masks)
    assert loaded.to_coco(1) == result.to_coco(1)


def test_every_output_and_the_name_as_given(tmp_path):
    segments = [{"id": 1, "category_id": 0, "name": "Bär"}]
    result = result_of(np.ones((2, 3, 4)))
    result.outputs.update(
        panoptic=np.ones((3, 4), np.int32),
        segments=np.array([json.dumps(segments, ensure_ascii=False).encode()], object),
        semantic=np.zeros((3, 4), np.int32),
        cls_logits=np.ones((5, 3), np.float32),
        mask_logits=np.full((5, 2, 2), np.float32(-1e-7)),
    )
    result.save(str(tmp_path / "no ending"))
    assert [path.name for path in tmp_path.iterdir()] == ["no ending"]
    loaded = Result.load(str(tmp_path / "no ending"))
    assert_same(result, loaded)
    assert loaded.segments == segments


def test_rle_without_this_package(tmp_path):
    """numpy reads it without pickle."""
    result = result_of(np.ones((2, 3, 4)))
    result.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["rle"].tolist() == result.rle


def test_masks_that_were_not_made_and_masks_that_were_not_asked_for(tmp_path):
    for outputs in ({"rle": np.array([b"", b""], object), "size": np.array([3, 4], np.int32)}, {"scores": np.ones(1)}):
        Result(outputs).save(tmp_path / "a.npz")
        assert_same(Result(outputs), Result.load(tmp_path / "a.npz"))


def test_files_that_are_no_results(tmp_path):
    good = tmp_path / "good.npz"
    result_of(np.ones((2, 30, 40))).save(good)
    damaged = bytearray(good.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    np.save(tmp_path / "one.npy", np.ones(3))
    np.savez(tmp_path / "pickle.npz", rle=np.array([b"a", b"b"], object))
    contents = {"empty": b"", "text": b"text", "cut": good.read_bytes()[:-30], "damaged": bytes(damaged)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in ("empty", "text", "cut", "damaged", "other.npz", "one.npy", "pickle.npz"):
        with pytest.raises(M2FError, match=rf"{name} is not a result that Result.save wrote"):
            Result.load(tmp_path / name)


def test_files_that_unpack_to_more_than_is_allowed(tmp_path):
    result = result_of(np.zeros((3, 2000, 3000)))
    path = tmp_path / "a.npz"
    result.save(path)
    assert path.stat().st_size < 100_000
    assert_same(result, Result.load(path, max_bytes=30_000_000))
    with pytest.raises(M2FError, match=r"a\.npz holds 20\d{6} bytes; allowed are 10000000"):
        Result.load(path, max_bytes=10_000_000)
    Result({"rle": np.array([b"0"], object), "size": np.array([2**31 - 1] * 2, np.int32)}).save(path)
    loaded = Result.load(path)
    for dense in (lambda: loaded.mask(0), lambda: loaded.masks):
        with pytest.raises(
            M2FError, match=r"1 x 2147483647 x 2147483647 pixels of dense masks would take .* GiB; allowed"
        ):
            dense()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("size", np.array([-5, -5])),
        ("size", np.array([5])),
        ("size", np.array([b"5", b"5"])),
        ("rle", np.array([10**12])),  # as many zeros, to `bytes`
        ("scores", np.array(["0.9"])),
    ],
)
def test_arrays_that_are_no_outputs(tmp_path, name, array):
    np.savez(tmp_path / "a.npz", **{name: array})
    with pytest.raises(M2FError, match=f"a.npz is not a result that Result.save wrote: '{name}' is"):
        Result.load(tmp_path / "a.npz")


def test_headers_that_lie_and_members_that_are_packed_otherwise(tmp_path):
    path = tmp_path / "a.npz"
    header = np.lib.format.header_data_from_array_1_0(np.zeros(0, np.uint8))
    members = {"petabyte": _npy({**header, "shape": (1 << 50,)}), "open": _npy(header).replace(b"}", b"(")}
    for member in members.values():
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("masks.npy", member)
        with pytest.raises(M2FError, match="not a result"):
            Result.load(path)
    content = bytearray(path.read_bytes())
    for marker, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(marker) + offset] = 99  # a method of packing that there is not
    path.write_bytes(content)
    with pytest.raises(M2FError, match="not a result"):
        Result.load(path)


def _npy(header):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def test_places_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(M2FError, match=r"cannot read .*missing.npz: No such file"):
        Result.load(tmp_path / "missing.npz")
    with pytest.raises(M2FError, match=r"cannot write .*: Is a directory"):
        result_of(np.ones((1, 2, 2))).save(tmp_path)
