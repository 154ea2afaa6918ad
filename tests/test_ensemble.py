"""The two public ensembles on the real server: every subset of outputs, batches, concurrency, numbers."""

import itertools
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kserve import connect, image_input
from pycocotools import mask as coco
from reference import full_size_logits, instances
from reference_maps import mask_probabilities, panoptic, semantic_scores
from tritonclient.utils import InferenceServerException

from m2f.contract import CLASS_NAMES, OUTPUTS, PUBLIC_MODEL, PUBLIC_TENSOR_MODEL, RAW_OUTPUTS, STRUCTURED_OUTPUTS
from m2f.preprocess import Preprocessing

pytestmark = pytest.mark.server

NAMES = [tensor.name for tensor in OUTPUTS]
GROUPS = {tensor.name: f"mask2former_{tensor.group}" for tensor in OUTPUTS}
LOW = 0.05  # a threshold that leaves many instances


def random_subsets(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield tuple(rng.permutation(NAMES)[: rng.integers(1, len(NAMES) + 1)].tolist())


def pairwise(size):
    """Subsets of a size such that any two outputs are together in one of them."""
    left = set(itertools.combinations(NAMES, 2))
    while left:
        subset = list(min(left))
        while len(subset) < size:
            rest = [name for name in NAMES if name not in subset]
            subset.append(max(rest, key=lambda new: sum(pair(new, old) in left for old in subset)))
        left -= set(itertools.combinations(sorted(subset, key=NAMES.index), 2))
        yield tuple(subset)


def pair(one, other):
    return tuple(sorted((one, other), key=NAMES.index))


SINGLE = [(name,) for name in NAMES]
SOME = [*SINGLE, *pairwise(4)]
ALL = [*SINGLE, *itertools.combinations(NAMES, 2), tuple(NAMES), *random_subsets(100)]


@pytest.fixture(scope="module")
def grpc(server):
    return connect(server, "grpc")


@pytest.fixture(scope="module")
def preprocessing(grpc):
    """The repository's own preprocessing, read from the server."""
    config = grpc.client.get_model_config("mask2former_preprocess").config
    return Preprocessing.from_repository({key: value.string_value for key, value in config.parameters.items()})


@pytest.fixture(scope="module")
def inputs(preprocessing, image_files):
    """For each ensemble, the inputs of one request."""
    data = min(image_files, key=len)
    batch, img_shape, ori_shape = preprocessing([data])
    return {
        PUBLIC_MODEL: image_input(data),
        PUBLIC_TENSOR_MODEL: {"input": batch, "img_shape": img_shape, "ori_shape": ori_shape},
    }


def assert_same(got, want):
    """Bit for bit."""
    assert got.keys() <= want.keys()
    for name, array in got.items():
        assert array.dtype == want[name].dtype
        np.testing.assert_array_equal(array, want[name], err_msg=name)


def runs_behind(model, subset):
    """How often each model must run for these outputs; no other model may run."""
    masks = {"masks", "packed_masks"} & set(subset)  # a step each, of one model
    models = {"mask2former_engine", model} | {GROUPS[name] for name in subset}
    if model == PUBLIC_MODEL:
        models.add("mask2former_preprocess")
    if masks:
        models.add("mask2former_postprocess")
    return Counter(models) + Counter({"mask2former_masks": len(masks) - 1})


@pytest.mark.parametrize(
    ("protocol", "model", "subsets"),
    [
        pytest.param("http", PUBLIC_MODEL, SOME, id="some-http"),
        pytest.param("grpc", PUBLIC_TENSOR_MODEL, SOME, id="some-grpc"),
        pytest.param("grpc", PUBLIC_MODEL, ALL, id="all-grpc", marks=pytest.mark.more),
        pytest.param("http", PUBLIC_TENSOR_MODEL, ALL, id="all-http", marks=pytest.mark.more),
    ],
)
def test_every_subset_of_outputs(server, inputs, protocol, model, subsets):
    """Right names, values identical to those of a request for all, and no step that nobody asked for."""
    triton = connect(server, protocol)
    everything = triton.infer(model, inputs[model], NAMES, score_threshold=LOW)
    assert set(everything) == set(NAMES)
    assert everything["num_instances"][0, 0] > 0
    before = Counter(triton.settled_runs())
    for subset in subsets:
        got = triton.infer(model, inputs[model], subset, score_threshold=LOW)
        assert set(got) == set(subset)
        assert_same(got, everything)
    wanted = sum((runs_behind(model, subset) for subset in subsets), Counter())
    assert Counter(triton.settled_runs()) - before == wanted


@pytest.mark.parametrize("model", [PUBLIC_MODEL, PUBLIC_TENSOR_MODEL])
def test_class_names_need_no_right_to_read_configurations(grpc, inputs, model):
    stated = grpc.client.get_model_config("mask2former_postprocess").config.parameters["class_names"].string_value
    two = {name: np.concatenate([array, array]) for name, array in inputs[model].items()}
    names = grpc.infer(model, two, [CLASS_NAMES])[CLASS_NAMES]
    assert names.shape == (2, 1)
    assert [json.loads(row) for row in names[:, 0]] == [json.loads(stated)] * 2


def test_both_ensembles_and_both_protocols_agree(server, inputs):
    answers = [
        connect(server, protocol).infer(model, inputs[model], NAMES, score_threshold=LOW)
        for protocol in ("http", "grpc")
        for model in inputs
    ]
    for answer in answers[1:]:
        assert_same(answer, answers[0])


def test_asking_for_nothing_in_particular_gives_everything(grpc, inputs):
    assert set(grpc.infer(PUBLIC_MODEL, inputs[PUBLIC_MODEL])) == set(NAMES)


def test_structured_outputs_are_the_references_of_the_raw_ones(grpc, preprocessing, image_files):
    for data in image_files:
        got = grpc.infer(PUBLIC_MODEL, image_input(data), NAMES, score_threshold=LOW)
        _, img_shape, ori_shape = preprocessing([data])
        check_against_raw(got, tuple(img_shape[0]), tuple(ori_shape[0]))


def check_against_raw(got, img_shape, ori_shape):
    """Recompute one image's structured outputs in float64 from its raw ones."""
    cls_logits, mask_logits = got["cls_logits"][0], got["mask_logits"][0]
    want = instances(cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape, threshold=LOW)
    logits = full_size_logits(mask_logits, img_shape, ori_shape)
    assert got["num_instances"].tolist() == [[len(want)]]
    assert got["size"].tolist() == [list(ori_shape)]
    np.testing.assert_allclose(got["scores"][0], [row["score"] for row in want], atol=1e-4)
    pairs = list(zip(got["queries"][0].tolist(), got["labels"][0].tolist(), strict=True))
    for row in want:
        i = pairs.index((row["query"], row["label"]))
        rle = {"size": list(ori_shape), "counts": got["rle"][0][i]}
        expected = coco.encode(np.asfortranarray(row["mask"]))
        if row["mask"].any():
            assert coco.iou([rle], [expected], [False])[0, 0] >= 0.9999
        if (np.abs(logits[row["query"]]) > 1e-4).all():  # else float32 may round a border pixel away
            assert got["boxes"][0, i].tolist() == row["box"]
        assert got["areas"][0, i] == coco.area(rle)


def test_label_maps_are_the_references_of_the_raw_outputs(grpc, preprocessing, image_files):
    for data in image_files:
        got = grpc.infer(PUBLIC_MODEL, image_input(data), ["panoptic", "segments", "semantic", *RAW_OUTPUTS])
        _, img_shape, ori_shape = preprocessing([data])
        cls_logits = got["cls_logits"][0]
        masks = mask_probabilities(got["mask_logits"][0], tuple(img_shape[0]), tuple(ori_shape[0]))
        ids, segments = panoptic(cls_logits, masks, things=range(cls_logits.shape[1] - 1))
        assert (got["panoptic"][0] != ids).mean() < 1e-4
        sent = json.loads(got["segments"][0, 0])
        assert [{key: segment[key] for key in ("id", "isthing", "category_id")} for segment in sent] == segments
        assert {segment["name"] for segment in sent} <= {"circle", "square", "triangle", "star", "ring"}
        assert (got["semantic"][0] != semantic_scores(cls_logits, masks).argmax(0)).mean() < 1e-4


def test_a_request_may_change_the_panoptic_thresholds(grpc, image_files):
    def segments(**parameters):
        got = grpc.infer(PUBLIC_MODEL, image_input(image_files[1]), ["panoptic", "segments"], **parameters)
        sent = json.loads(got["segments"][0, 0])
        assert set(np.unique(got["panoptic"])) - {0} == {segment["id"] for segment in sent}
        return sent

    usual = segments()
    assert 0 < len(usual) < len(segments(panoptic_score_threshold=0.0, panoptic_overlap_threshold=0.0))
    assert segments(panoptic_score_threshold=1.0) == []
    filled = segments(panoptic_filter_low_score=False)
    assert sum(s["area"] for s in filled) > sum(s["area"] for s in usual)


@pytest.mark.parametrize("output", ["panoptic", "semantic"])
def test_a_label_map_beyond_a_gigabyte_is_refused(grpc, inputs, output):
    inputs = {**inputs[PUBLIC_TENSOR_MODEL], "ori_shape": np.array([[65_535, 5000]], np.int32)}
    with pytest.raises(InferenceServerException, match=f"'{output}' would take .*ask for 'rle' instead") as error:
        grpc.infer(PUBLIC_TENSOR_MODEL, inputs, [output])
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_masks_survive_the_round_trip(grpc, image_files):
    for data in image_files:
        got = grpc.infer(PUBLIC_MODEL, image_input(data), ["rle", "size", "masks", "packed_masks"], score_threshold=LOW)
        size = got["size"][0].tolist()
        for counts, mask in zip(got["rle"][0], got["masks"][0], strict=True):
            np.testing.assert_array_equal(coco.decode({"size": size, "counts": counts}), mask)
        np.testing.assert_array_equal(np.packbits(got["masks"], axis=3), got["packed_masks"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_request_with_images_of_different_sizes(server, image_files, protocol):
    triton = connect(server, protocol)
    files = image_files[:4]
    together = triton.infer(PUBLIC_MODEL, image_input(*files), NAMES, score_threshold=LOW)
    counts = together["num_instances"][:, 0]
    assert len(set(map(tuple, together["size"].tolist()))) > 1
    assert together["scores"].shape == (4, counts.max())
    for i, data in enumerate(files):
        alone = triton.infer(PUBLIC_MODEL, image_input(data), NAMES, score_threshold=LOW)
        assert_row_equals(together, i, alone)


def assert_row_equals(together, i, alone):
    """Row i of a padded answer is the answer of that image alone, and the rest is padding."""
    count = alone["num_instances"][0, 0]
    height, width = alone["size"][0]
    assert together["num_instances"][i, 0] == count
    for name in STRUCTURED_OUTPUTS[1:-1]:
        np.testing.assert_array_equal(together[name][i, :count], alone[name][0], err_msg=name)
    np.testing.assert_array_equal(together["masks"][i, :count, :height, :width], alone["masks"][0])
    assert together["masks"][i].sum() == alone["masks"].sum()
    assert (together["labels"][i, count:] == -1).all()
    assert (together["scores"][i, count:] == 0).all()
    assert (together["rle"][i, count:] == b"").all()
    for name, beyond in (("panoptic", 0), ("semantic", -1)):
        np.testing.assert_array_equal(together[name][i, :height, :width], alone[name][0], err_msg=name)
        padding = together[name][i].size - alone[name][0].size
        assert (together[name][i] == beyond).sum() == padding + (alone[name][0] == beyond).sum()
    for name in ("cls_logits", "mask_logits", "segments"):
        np.testing.assert_array_equal(together[name][i], alone[name][0], err_msg=name)


def test_32_concurrent_requests_of_different_sizes(server, image_files):
    """Each answer is the one the image gets alone, whatever the batcher put beside it."""
    grpc = connect(server, "grpc")
    alone = [grpc.infer(PUBLIC_MODEL, image_input(data), NAMES, score_threshold=LOW) for data in image_files]
    order = [i % len(image_files) for i in range(32)]
    before = engine_executions(grpc)
    with ThreadPoolExecutor(32) as pool:
        answers = pool.map(
            lambda i: grpc.infer(PUBLIC_MODEL, image_input(image_files[i]), NAMES, score_threshold=LOW), order
        )
        for i, answer in zip(order, answers, strict=True):
            assert_same(answer, alone[i])
    assert engine_executions(grpc) - before < 32  # the batcher did put some together


def engine_executions(grpc):
    grpc.settled_runs()
    return grpc.client.get_inference_statistics("mask2former_engine").model_stats[0].execution_count


def test_nothing_found_is_an_answer_too(grpc, image_files):
    got = grpc.infer(PUBLIC_MODEL, image_input(image_files[0]), NAMES, score_threshold=1.0)
    assert got["num_instances"].tolist() == [[0]]
    assert got["boxes"].shape == (1, 0, 4)
    assert got["masks"].shape[:2] == (1, 0)
    assert got["rle"].shape == (1, 0)


def test_class_names_are_readable_by_clients(grpc):
    parameters = grpc.client.get_model_config("mask2former_postprocess").config.parameters
    assert len(json.loads(parameters["class_names"].string_value)) == 5


@pytest.mark.parametrize(
    "count", [3, pytest.param(60, marks=pytest.mark.more), pytest.param(600, marks=pytest.mark.chaos)]
)
@pytest.mark.parametrize("failing", ["one step", "every step"])
def test_steps_that_fail_beside_others_do_not_end_the_server(grpc, inputs, failing, count):
    """Triton up to 26.04 ends within 30 such requests if a step fails before the next one is scheduled."""
    outputs = ["panoptic", "scores", "semantic"]
    if failing == "one step":
        model, wrong, parameters, message = PUBLIC_MODEL, {}, {"classes": "unicorn"}, "unicorn"
    else:
        shape = {"ori_shape": np.array([[1, 1 << 16]], np.int32)}
        model, wrong, parameters, message = PUBLIC_TENSOR_MODEL, shape, {}, "ori_shape"
    for _ in range(count):
        with pytest.raises(InferenceServerException, match=message):
            grpc.infer(model, {**inputs[model], **wrong}, outputs, **parameters)
    assert "panoptic" in grpc.infer(model, inputs[model], outputs)
