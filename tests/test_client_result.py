"""`Result` and COCO: round trips through pycocotools on random masks."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from m2f.contract import PANOPTIC_OUTPUTS, STRUCTURED_OUTPUTS
from m2f_client import Client, OutputNotRequested, Result, ServerError
from m2f_client.converters.coco import panoptic_pixels
from m2f_client.fake import result_of, stacked

stacks_of_masks = hnp.arrays(
    bool,
    st.tuples(st.integers(0, 4), st.integers(1, 17), st.integers(1, 13)),
    elements=st.booleans(),
    fill=st.booleans(),
)


@given(stacks_of_masks)
@settings(deadline=None)
def test_masks_are_decoded_from_rle(masks):
    sent = result_of(masks)
    got = Result({name: array for name, array in sent.outputs.items() if name not in {"masks", "packed_masks"}})
    assert got.masks.dtype == np.uint8
    assert np.array_equal(got.masks, masks)
    packed = Result({name: sent.outputs[name] for name in ("packed_masks", "size")})
    assert np.array_equal(packed.masks, masks)
    assert got.masks is got.masks  # decoded once
    assert all(np.array_equal(got.mask(i), masks[i]) for i in range(len(got)))


@given(stacks_of_masks)
@settings(deadline=None)
def test_coco_rows_are_what_pycocotools_computes(masks):
    result = result_of(masks)
    rows = result.to_coco(image_id=7)
    assert [row["image_id"] for row in rows] == [7] * len(masks)
    for row, mask, label in zip(rows, masks, result.labels, strict=True):
        assert np.array_equal(coco_mask.decode(row["segmentation"]), mask)
        assert row["bbox"] == coco_mask.toBbox(row["segmentation"]).tolist()
        assert row["area"] == coco_mask.area(row["segmentation"])
        assert row["category_id"] == label + 1
    assert json.loads(json.dumps(rows)) == rows


@given(st.lists(stacks_of_masks, min_size=1, max_size=4))
@settings(deadline=None)
def test_padding_of_a_batch_is_cut(stacks):
    singles = [result_of(masks) for masks in stacks]
    answer = stacked(singles)
    for index, single in enumerate(singles):
        got = Result.from_batch(answer, index)
        assert len(got) == len(single)
        assert got.rle == single.rle
        assert got.size == single.size
        assert np.array_equal(got.masks, single.masks)
        assert got.to_coco(1) == single.to_coco(1)


def test_label_maps_of_a_batch_lose_their_padding_and_segments_are_parsed():
    singles = []
    for label, size in enumerate([(3, 5), (4, 2)], start=1):
        segments = [{"id": 1, "category_id": label, "isthing": 1}]
        maps = {name: np.full(size, label, np.int32) for name in ("panoptic", "semantic")}
        text = np.array([json.dumps(segments).encode()], object)
        singles.append(Result({**maps, "segments": text, "size": np.array(size, np.int32)}))
    answer = stacked(singles)
    assert answer["semantic"].min() == -1
    for index, single in enumerate(singles):
        got = Result.from_batch(answer, index)
        assert np.array_equal(got.panoptic, single.panoptic)
        assert np.array_equal(got.semantic, single.semantic)
        assert got.segments == [{"id": 1, "category_id": index + 1, "isthing": 1}]


def test_segments_that_are_no_json():
    with pytest.raises(ServerError, match=r"segments from the server are not JSON: b'\[\{'"):
        Result({"segments": np.array([b"[{"], object)}).segments  # noqa: B018
    with pytest.raises(OutputNotRequested, match="ask for it: outputs="):
        Result({}).segments  # noqa: B018


@given(hnp.arrays(np.int32, (3, 4), elements=st.integers(0, (1 << 24) - 1)))
def test_panoptic_ids_survive_the_png(ids):
    pixels = panoptic_pixels(ids).astype(np.int32)
    assert np.array_equal(pixels[:, :, 0] + 256 * pixels[:, :, 1] + 256 * 256 * pixels[:, :, 2], ids)


def test_panoptic_annotation():
    ids = np.array([[0, 1], [300, 70000]], np.int32)
    segments = [{"id": i, "category_id": c, "isthing": 1} for i, c in ((1, 0), (300, 2), (70000, 0))]
    result = Result({"panoptic": ids, "segments": np.array([json.dumps(segments).encode()], object)})
    annotation, pixels = result.to_panoptic(7, "a.png")
    assert annotation == {"image_id": 7, "file_name": "a.png", "segments_info": segments}
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels.astype(int) @ [1, 256, 256 * 256], ids)  # panopticapi's rgb2id
    mapped, _ = result.to_panoptic(7, "a.png", categories=[{"id": 4}, {"id": 5}, {"id": 9}])
    assert [segment["category_id"] for segment in mapped["segments_info"]] == [4, 9, 4]
    with pytest.raises(ValueError, match="class index 2 has no category"):
        result.to_panoptic(7, "a.png", categories=[1, 2])


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        (None, [3, 1]),
        ([10, 20, 30], [30, 10]),
        ([{"id": 5, "name": "a"}, {"id": 6, "name": "b"}, {"id": 9, "name": "c"}], [9, 5]),
    ],
)
def test_category_ids(categories, expected):
    result = result_of(np.ones((2, 3, 3)), labels=[2, 0])
    assert [row["category_id"] for row in result.to_coco(1, categories)] == expected


def test_too_few_categories():
    with pytest.raises(ValueError, match="class index 2 has no category"):
        result_of(np.ones((1, 3, 3)), labels=[2]).to_coco(1, [1, 2])


def test_names_and_numbers():
    result = result_of(np.ones((3, 2, 2)), labels=[1, 0, 5])
    assert result.names(["cat", "dog"]) == ["dog", "cat", "5"]
    assert result.names(None) == ["1", "0", "5"]


def test_an_output_not_asked_for_is_named():
    result = Result({"scores": np.zeros(2, np.float32)})
    assert len(result) == 2
    for read in (lambda: result.boxes, lambda: result.masks, lambda: result.mask_logits, lambda: result.to_coco(1)):
        with pytest.raises(OutputNotRequested, match=r"outputs=\(\.\.\., '\w+'\)"):
            read()


def test_a_server_that_makes_no_masks():
    outputs = dict(result_of(np.ones((2, 3, 4))).outputs)
    outputs["rle"] = np.array([b"", b""], np.object_)
    del outputs["masks"], outputs["packed_masks"]
    result = Result(outputs)
    assert not result.masks.any()
    assert result.masks.shape == (2, 3, 4)
    assert all("segmentation" not in row for row in result.to_coco(1))


EVERY_CONVERSION = {
    "to_supervision": ("scores", "labels", "boxes"),  # and what each cannot do without
    "to_pandas": ("scores", "labels", "boxes"),
    "to_geojson": ("scores", "labels", "boxes", "rle"),
    "to_labelme": ("scores", "labels", "rle", "size"),
    "to_label_studio": ("scores", "labels", "rle", "size"),
    "polygons": ("rle",),
    "to_coco": ("scores", "labels", "boxes"),
}
ARGUMENTS = {"to_labelme": ("a.jpg",), "to_label_studio": ("a.jpg",), "to_coco": (1,)}


def convert(result, method):
    return getattr(result, method)(*ARGUMENTS.get(method, ()))


def without_masks(result, *, rle=None):
    """As the server answers with `export_postprocess_mask=false`: empty RLE, no dense masks at all."""
    height, width = result.size
    empty = {"masks": np.zeros((0, height, width), np.uint8), "packed_masks": np.zeros((0, height, 1), np.uint8)}
    return Result({**result.outputs, **empty, "rle": np.array([b""] * len(result) if rle is None else rle, object)})


@pytest.mark.parametrize("method", EVERY_CONVERSION)
def test_no_instances(method):
    for result in (result_of(np.zeros((0, 3, 4))), without_masks(result_of(np.zeros((0, 3, 4))))):
        assert result.has_masks
        converted = convert(result, method)
        if method == "to_geojson":
            assert converted["features"] == []
        elif method == "to_labelme":
            assert converted["shapes"] == []
        elif method == "to_label_studio":
            assert converted["predictions"][0]["result"] == []
        else:
            assert len(converted) == 0
        if method == "to_supervision":
            assert converted.mask.shape == (0, 3, 4)


@pytest.mark.parametrize("method", EVERY_CONVERSION)
def test_a_server_that_made_no_masks_for_the_instances(method):
    result = without_masks(result_of(np.ones((2, 3, 4))))
    assert not result.has_masks
    assert result.masks.shape == (2, 3, 4)
    assert not result.masks.any()
    converted = convert(result, method)
    if method == "to_geojson":
        assert [feature["geometry"] for feature in converted["features"]] == [None, None]
    elif method == "polygons":
        assert converted == [[], []]
    elif method == "to_labelme":
        assert [shape["shape_type"] for shape in converted["shapes"]] == ["rectangle"] * 2
    elif method == "to_label_studio":
        assert [region["type"] for region in converted["predictions"][0]["result"]] == ["rectanglelabels"] * 2
    else:
        assert len(converted) == 2


@pytest.mark.parametrize("method", EVERY_CONVERSION)
def test_what_a_conversion_cannot_do_without_is_named(method):
    full = result_of(np.ones((2, 3, 4)))
    needed = {name: full.outputs[name] for name in {*EVERY_CONVERSION[method], "size", "num_instances"}}
    convert(Result(needed), method)  # the rest is not needed
    for missing in EVERY_CONVERSION[method]:
        rest = {name: array for name, array in needed.items() if name != missing}
        with pytest.raises(OutputNotRequested, match=rf"no '({missing}|boxes)'"):  # boxes stand in for masks
            convert(Result(rest), method)


@pytest.mark.parametrize("method", EVERY_CONVERSION)
def test_any_output_with_masks_will_do(method):
    full = result_of(np.random.default_rng(0).random((3, 9, 11)) < 0.6)
    expected = convert(full, method)
    for kept in ("masks", "packed_masks", "rle"):
        outputs = {n: a for n, a in full.outputs.items() if n == kept or n not in {"masks", "packed_masks", "rle"}}
        got = convert(Result(outputs), method)
        if method == "to_coco" and kept != "rle":
            assert all("segmentation" not in row for row in got)
        else:
            assert repr(got) == repr(expected)


@pytest.mark.server
@pytest.mark.parametrize("masks", [True, False])
def test_every_conversion_of_a_real_answer(server, image_files, tmp_path, masks):
    outputs = (*STRUCTURED_OUTPUTS, "masks", "packed_masks", *PANOPTIC_OUTPUTS)
    with Client(f"grpc://{server.grpc_url}") as client:
        result = client.predict(image_files[0], outputs=outputs, export_postprocess_mask=masks)
    assert len(result) > 0
    assert result.has_masks == masks
    for method in EVERY_CONVERSION:
        convert(result, method)
    areas = [sum(shapely.Polygon(*polygon).area for polygon in polygons) for polygons in result.polygons()]
    assert areas == (result.areas.tolist() if masks else [0] * len(result))
    annotation, pixels = result.to_panoptic(1, "a.png")
    assert np.array_equal(np.unique(pixels @ [1, 256, 65536]), [0, *(s["id"] for s in annotation["segments_info"])])
    assert result.plot(image_files[0]).size == result.size[::-1]
    result.save(tmp_path / "a.npz")
    loaded = Result.load(tmp_path / "a.npz")
    assert all(np.array_equal(loaded.outputs[name], array) for name, array in result.outputs.items())


def test_a_mask_that_is_no_rle():
    outputs = {**result_of(np.ones((1, 3, 4))).outputs, "rle": np.array([b"\xff"], np.object_)}
    del outputs["masks"], outputs["packed_masks"]
    with pytest.raises(ServerError, match="mask 0 from the server"):
        _ = Result(outputs).masks


def test_results_score_as_their_own_truth():
    """`to_coco` through `COCO.loadRes` and COCOeval."""
    rng = np.random.default_rng(0)
    rows = []
    for image_id in (1, 2, 3):
        masks = np.zeros((3, 40, 50))
        for mask, (y, x) in zip(masks, rng.integers(0, 20, (3, 2)), strict=True):
            mask[y : y + 15, x : x + 20] = 1
        rows += result_of(masks).to_coco(image_id)
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image_id, "height": 40, "width": 50} for image_id in (1, 2, 3)],
        "categories": [{"id": number, "name": str(number)} for number in (1, 2, 3)],
        "annotations": [{"id": i + 1, "iscrowd": 0, **row} for i, row in enumerate(rows)],
    }
    truth.createIndex()
    scored = COCOeval(truth, truth.loadRes(rows), "segm")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[0] == pytest.approx(1.0)
