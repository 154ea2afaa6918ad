"""The original Mask2Former, from its configuration to instances, compared with its own code.

The references were made once by facebookresearch/Mask2Former (9b0651c) on detectron2 (02b5c4e) in float64, outside this
project: its model is built from the configurations of `detectron2_models.py` and given the weights of `seeded`, by
name. `logits` come from its backbone and head, for two normalised pictures. `instances`, `panoptic` and `semantic` are
what its `forward` answers for one picture, after detectron2's `ResizeShortestEdge`.
"""

import json

import numpy as np
import pytest
from detectron2_models import reference, smooth_picture, weights, write_config, write_pickle
from exports import m2f_export
from pictures import encode
from pycocotools import mask as coco_mask

torch = pytest.importorskip("torch")

from m2f.logits import ImageLogits  # noqa: E402
from m2f.model_facts import ModelFacts  # noqa: E402
from m2f.panoptic import panoptic  # noqa: E402
from m2f.semantic import semantic  # noqa: E402
from m2f.settings import Settings  # noqa: E402
from m2f_export.export_errors import ExportError  # noqa: E402
from m2f_export.graph import with_input  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


def load_detectron2(*paths):
    """Load a model; the module imports mmdetection's data sets, which takes three seconds of every worker's time."""
    from m2f_export.sources import detectron2

    return detectron2.load_detectron2(*paths)


def describe_detectron2(config):
    from m2f_export.sources import detectron2

    return detectron2.describe_detectron2(config)


def classes_of(data_set, count):
    from m2f_export.sources import detectron2_datasets

    return detectron2_datasets.classes_of(data_set, count)


@pytest.fixture(scope="module")
def r50(tmp_path_factory):
    """The tiny R50 in a pickle with the names of older files; without the counters that FrozenBN lacks."""
    folder = tmp_path_factory.mktemp("r50")
    older = {
        name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"): values
        for name, values in weights(reference("r50")["weights"]).items()
    }
    older["criterion.empty_weight"] = np.ones(20)
    return write_config(folder, "r50"), write_pickle(folder / "model_final.pkl", older)


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    """The tiny Swin as detectron2's trainer writes it."""
    folder = tmp_path_factory.mktemp("swin")
    model = {name: torch.from_numpy(values) for name, values in weights(reference("swin")["weights"]).items()}
    path = folder / "model_0004999.pth"
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": model, "optimizer": optimizer, "iteration": 4999}, path)
    return write_config(folder, "swin"), path


@pytest.mark.parametrize("name", ["r50", "swin"])
def test_the_network_computes_the_originals_logits(request, name):
    source = load_detectron2(*request.getfixturevalue(name))
    stated = reference(name)
    ramp = smooth_picture(96, 160)
    batch = np.stack([ramp, ramp[::-1, ::-1]]).astype(np.float64).transpose(0, 3, 1, 2) / 50 - 2.5
    batch = batch[:, ::-1] if name == "swin" else batch  # that model takes BGR, and its source RGB
    with torch.inference_mode():
        cls_logits, mask_logits = source.network.double()(torch.from_numpy(batch.copy()))
    np.testing.assert_allclose(cls_logits, stated["cls_logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(mask_logits[:, ::2, ::6, ::6], stated["mask_logits"], rtol=0, atol=1e-4)


def test_maps_are_the_originals_to_the_pixel(r50):
    source, stated = load_detectron2(*r50), reference("r50")
    preprocessing = with_input(source, layout="float32_chw", size=None).preprocessing
    image, img_shape, ori_shape = preprocessing([encode(smooth_picture(60, 83))])
    with torch.inference_mode():
        cls_logits, mask_logits = (found[0].numpy() for found in source.network(torch.from_numpy(image)))
    logits = ImageLogits(cls_logits, mask_logits, img_shape=tuple(img_shape[0]), ori_shape=tuple(ori_shape[0]))
    found = panoptic(logits, source.settings, source.facts)
    assert_same_maps(found.ids, found.segments, semantic(logits, source.settings), stated)


def test_what_is_served_is_described(r50, swin):
    source = load_detectron2(*r50)
    assert (source.kind, source.num_classes, source.divisor) == ("original Mask2Former (r50)", 19, 32)
    assert source.facts.class_names[:2] + source.facts.class_names[11:13] == ("road", "sidewalk", "person", "rider")
    assert source.facts.thing_classes == set(range(11, 19))
    assert source.settings == Settings(
        semantics="detectron2", panoptic_score_threshold=0.3, panoptic_overlap_threshold=0.2
    )
    assert source.notes == ()
    preprocessing = source.preprocessing
    assert (preprocessing.scale, preprocessing.size_rule) == ((150, 96), "detectron2")
    assert (preprocessing.resample, preprocessing.pad_value) == ("pillow_bilinear", (124, 116, 104))
    other = load_detectron2(*swin)
    assert other.settings == Settings(
        semantics="detectron2", pre_top_k=20, panoptic_score_threshold=0.3, panoptic_overlap_threshold=0.2
    )
    assert other.facts == ModelFacts(class_names=(), thing_classes=frozenset(range(3)))
    assert other.preprocessing.mean == (123.675, 116.28, 103.53)  # RGB, of a model that takes BGR
    assert "the classes of the data set my_parts_train are not known" in other.notes[0]


def test_a_semantic_model_resizes_its_scores(tmp_path):
    test = "MODEL: {MASK_FORMER: {TEST: {PANOPTIC_ON: False, INSTANCE_ON: False}}}"
    source = describe_detectron2(write_config(tmp_path, "r50", test))
    assert source.settings.semantic_resize == "scores"
    assert source.facts.thing_classes == set(range(19))
    assert "ask for the output 'semantic'" in source.notes[0]
    more = test.replace("}}}", ", SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE: True}}}")
    assert describe_detectron2(write_config(tmp_path, "r50", more)).settings.semantic_resize == "logits"


def test_images_may_stay_as_they_are(tmp_path):
    source = describe_detectron2(write_config(tmp_path, "r50", "INPUT: {MIN_SIZE_TEST: 0}"))
    assert source.preprocessing.target_size(123, 45) == (123, 45)


@pytest.mark.parametrize(
    ("data_set", "count", "names", "things"),
    [
        ("coco_2017_train", 80, ("person", "toothbrush"), set(range(80))),
        ("coco_2017_train_panoptic", 133, ("person", "rug-merged"), set(range(80))),
        ("coco_2017_val_panoptic_with_sem_seg", 133, ("person", "rug-merged"), set(range(80))),
        ("ade20k_instance_train", 100, ("bed", "flag"), set(range(100))),
        ("ade20k_sem_seg_train", 150, ("wall", "flag"), None),
        ("cityscapes_fine_instance_seg_train", 8, ("person", "bicycle"), set(range(8))),
        ("cityscapes_fine_sem_seg_train", 19, ("road", "bicycle"), None),
        ("mapillary_vistas_sem_seg_train", 65, ("Bird", "Ego Vehicle"), None),
        ("coco_2017_train", 81, None, None),  # a model of other classes
        ("coco_2017_train_mine", 80, None, None),
        ("", 80, None, None),
    ],
)
def test_the_classes_of_registered_data_sets_are_known(data_set, count, names, things):
    classes = classes_of(data_set, count)
    assert (classes.names[0], classes.names[-1]) == names if names else classes.names == ()
    assert classes.things == things


def test_things_between_stuff_are_known():
    ade20k = classes_of("ade20k_panoptic_train", 150)
    assert len(ade20k.things) == 100
    assert [ade20k.names[label] for label in sorted(ade20k.things)[:3]] == ["bed", "windowpane", "cabinet"]
    mapillary = classes_of("mapillary_vistas_panoptic_train", 65)
    assert len(mapillary.things) == 37
    assert {mapillary.names[label] for label in range(65) if label not in mapillary.things} >= {"Sky", "Pothole"}


def test_weights_that_do_not_fit_are_named_as_in_the_original(r50, tmp_path):
    config, _ = r50
    model = weights(reference("r50")["weights"])
    del model["backbone.res2.0.conv1.norm.running_var"]
    model["sem_seg_head.predictor.class_embed.weight"] = np.zeros((81, 32), np.float32)
    model["sem_seg_head.predictor.extra"] = np.zeros(3, np.float32)
    with pytest.raises(ExportError) as caught:
        load_detectron2(config, write_pickle(tmp_path / "w.pkl", model))
    said = str(caught.value)
    assert "1 missing (backbone.res2.0.conv1.norm.running_var)" in said
    assert "1 unexpected (sem_seg_head.predictor.extra)" in said
    assert "sem_seg_head.predictor.class_embed.weight [81, 32] for [20, 32]" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("MODEL: {RESNETS: {RES2_OUT_CHANNELS: 64}}", "RES2_OUT_CHANNELS is 64; allowed: 16, for WIDTH_PER_GROUP is 4"),
        ("MODEL: {MASK_FORMER: {HIDDEN_DIM: 64}}", r"HIDDEN_DIM is 64; allowed: 32, as MODEL\.SEM_SEG_HEAD\.CONVS_DIM"),
        ("MODEL: {MASK_FORMER: {NHEADS: 5}}", "NHEADS is 5; allowed: a divisor of 32, which is HIDDEN_DIM"),
        ("MODEL: {MASK_FORMER: {DEC_LAYERS: 1}}", "DEC_LAYERS is 1, which is no layer; allowed: 2 or more"),
        ("MODEL: {BACKBONE: {NAME: D2SwinTransformer}, SWIN: {NUM_HEADS: [5, 6, 12, 24]}}", "divisors of"),
        ("INPUT: {MIN_SIZE_TEST: -1}", r"INPUT\.MIN_SIZE_TEST is -1; allowed: a whole number from 0"),
        ("INPUT: {FORMAT: L}", r"INPUT\.FORMAT is 'L'; allowed: 'RGB' or 'BGR'"),
        ("MODEL: {PIXEL_STD: [1, 0, 1]}", r"PIXEL_STD is \[1, 0, 1\]; allowed: three numbers other than 0"),
        ("MODEL: {MASK_FORMER: {TEST: {OVERLAP_THRESHOLD: 8}}}", r"TEST\.OVERLAP_THRESHOLD is 8; allowed: a number"),
        ("INPUT: {FORMAT: BGR}", "INPUT.FORMAT is 'BGR', and a graph does not say whether it takes BGR"),
    ],
)  # fmt: skip
def test_what_is_not_reproduced_is_named(tmp_path, more, message):
    with pytest.raises(ExportError, match=r"mine\.yaml: .*" + message):
        describe_detectron2(write_config(tmp_path, "r50", more))


@pytest.mark.official
@pytest.mark.server
def test_triton_answers_as_the_original(r50, tmp_path):
    """From the configuration to the answers of the service."""
    from m2f_client import Client
    from m2f_server import serve

    picture, repository = encode(smooth_picture(60, 83)), tmp_path / "mine"
    (tmp_path / "picture.png").write_bytes(picture)
    exact = ["--layout", "float32_chw"]  # padding is 0, not the nearest pixel
    result = m2f_export(*r50, *exact, "--repository", repository, "--image", tmp_path / "picture.png", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["source"] == "original Mask2Former (r50)"
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    outputs = ("scores", "labels", "rle", "size", "panoptic", "segments", "semantic")
    with (
        serve(model_repository=repository, config_name="cpu", **ports) as server,
        Client(f"grpc://{server.grpc_url}") as client,
    ):
        found = client.predict(picture, outputs=outputs, score_threshold=0.0)
    stated = reference("r50")
    assert_same_instances(found, stated["instances"])
    assert_same_maps(found.panoptic, found.segments, found.semantic, stated)


def assert_same_maps(ids, segments, classes, wanted):
    """To the pixel."""
    want_ids, want_classes = np.zeros((60, 83), int), np.full((60, 83), -1)
    for each in wanted["panoptic"]:
        want_ids[mask_of(each["rle"])] = each["id"]
    for label, rle in wanted["semantic"].items():
        want_classes[mask_of(rle)] = int(label)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(classes, want_classes)
    kept = ("id", "category_id", "isthing")
    assert [[each[key] for key in kept] for each in segments] == [[w[key] for key in kept] for w in wanted["panoptic"]]


def assert_same_instances(found, wanted):
    np.testing.assert_allclose(found.scores, [each["score"] for each in wanted], rtol=0, atol=1e-4)
    assert found.labels.tolist() == [each["label"] for each in wanted]
    for rle, want in zip(found.rle, wanted, strict=True):
        mine, theirs = mask_of(rle), mask_of(want["rle"])
        assert iou(mine, theirs) >= 0.999 or not theirs.any()


def mask_of(rle):
    return coco_mask.decode({"size": [60, 83], "counts": rle}).astype(bool)


def iou(one, other):
    return (one & other).sum() / max(1, (one | other).sum())
