"""The head in the graph against the Python postprocess, through ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from logits import SIZES, blobs
from onnx import TensorProto, helper
from reference import full_size_logits

from m2f.logits import ImageLogits
from m2f.model_facts import ModelFacts
from m2f.postprocess import postprocess
from m2f.preprocess import Preprocessing
from m2f.rle import decode
from m2f.settings import Settings

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "model_repository/mask2former_engine/1/model.onnx"
IMAGES = sorted(path for path in (ROOT / "examples/images").iterdir() if path.suffix in (".jpg", ".png", ".webp"))
NEAR_ZERO = 2e-3  # float32 may round a logit this close to 0 to its other side


@pytest.fixture(scope="module")
def export():
    return pytest.importorskip("m2f_export.head")


def logits_engine(queries=12, columns=5, *, opset=17, kind=TensorProto.FLOAT, names=("cls_logits", "mask_logits")):
    """An engine that hands its inputs on."""
    shapes = (["batch", queries, columns], ["batch", queries, "mask_height", "mask_width"])
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name}_in"], [name]) for name in names],
        "engine",
        [helper.make_tensor_value_info(f"{n}_in", kind, s) for n, s in zip(names, shapes, strict=True)],
        [helper.make_tensor_value_info(n, kind, s) for n, s in zip(names, shapes, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def open_session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the tests run in a worker for each core
    return ort.InferenceSession(model.SerializeToString(), options)


@pytest.fixture(scope="module")
def build(export):
    """A function from the head's settings to a function from logits and sizes to its outputs."""
    sessions = {}

    def run_head(cls_logits, mask_logits, img_shape, ori_shape, **settings):
        key = (*cls_logits.shape[1:], *sorted(settings.items()))
        if key not in sessions:
            model = export.attach_head(logits_engine(*cls_logits.shape[1:]), export.InstanceHead(**settings))
            sessions[key] = open_session(model)
        sizes = {"img_shape": np.array(img_shape, np.int32), "ori_shape": np.array(ori_shape, np.int32)}
        inputs = {"cls_logits_in": cls_logits, "mask_logits_in": mask_logits, **sizes}
        return dict(zip(export.OUTPUTS, sessions[key].run(list(export.OUTPUTS), inputs), strict=True))

    return run_head


def test_stuff_is_padding(build):
    """As mmdetection: after the best candidates have been taken."""
    cls_logits, mask_logits = blobs(np.random.default_rng(3))
    sizes = {"img_shape": (96, 128), "ori_shape": (96, 128)}
    got = build(cls_logits[None], mask_logits[None], *([size] for size in sizes.values()), thing_classes=(0, 2))
    settings = Settings(pre_top_k=100)
    want = postprocess(
        ImageLogits(cls_logits, mask_logits, **sizes), settings, ModelFacts(thing_classes=frozenset([0, 2]))
    )
    count = len(want.scores)
    assert 0 < count < len(postprocess(ImageLogits(cls_logits, mask_logits, **sizes), settings).scores)
    assert got["num_instances"].tolist() == [[count]]
    np.testing.assert_allclose(got["scores"][0, :count], want.scores, atol=1e-4)
    assert sorted(got["labels"][0, :count]) == sorted(want.labels)
    check_padding(got, 0, count)


def check_image(got, i, cls_logits, mask_logits, *, img_shape, ori_shape, top_k=100, threshold=0.0):
    """Image i of the head's outputs is what `m2f.postprocess` says; returns how many pixels differ."""
    settings = Settings(pre_top_k=top_k, score_threshold=threshold)
    want = postprocess(ImageLogits(cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape), settings)
    count = len(want.scores)
    assert got["num_instances"][i].tolist() == [count]
    np.testing.assert_allclose(got["scores"][i, :count], want.scores, atol=1e-4)
    assert (np.diff(got["scores"][i]) <= 0).all()
    check_padding(got, i, count)
    logits, free, differing = full_size_logits(mask_logits, img_shape, ori_shape), set(range(count)), 0
    height, width = ori_shape
    for row in range(count):
        mask = decode(want.rle[row], height, width)
        # scores within rounding of each other may come in another order
        rivals = [j for j in free if abs(got["scores"][i, j] - want.scores[row]) < 1e-4]
        rivals = [j for j in rivals if got["labels"][i, j] == want.labels[row]]
        assert rivals, f"row {row} is missing"
        wrong = {j: got["masks"][i, j, :height, :width] != mask for j in rivals}
        j = min(rivals, key=lambda j: (wrong[j].sum(), j))
        free.remove(j)
        assert (np.abs(logits[want.queries[row]][wrong[j]]) < NEAR_ZERO).all()
        if not wrong[j].any():
            assert got["boxes"][i, j].tolist() == want.boxes[row].tolist()
        assert got["masks"][i, j].sum() == got["masks"][i, j, :height, :width].sum()
        differing += int(wrong[j].sum())
    return differing


def check_padding(got, i, count):
    assert (got["scores"][i, count:] == 0).all()
    assert (got["labels"][i, count:] == -1).all()
    assert (got["boxes"][i, count:] == 0).all()
    assert not got["masks"][i, count:].any()


@pytest.mark.parametrize("name", SIZES)
def test_equals_the_python_postprocess_at_every_size(build, name):
    cells, img_shape, ori_shape = SIZES[name]
    cls_logits, mask_logits = blobs(np.random.default_rng(0), cells=cells)
    got = build(cls_logits[None], mask_logits[None], [img_shape], [ori_shape])
    assert got["masks"].shape == (1, 12 * 4, *ori_shape)  # Q x C < top_k
    differing = check_image(got, 0, cls_logits, mask_logits, img_shape=img_shape, ori_shape=ori_shape)
    assert differing <= 1e-5 * got["masks"].size


@pytest.mark.parametrize(("top_k", "threshold"), [(1, 0.0), (30, 0.3), (100, 1.0)])
def test_a_batch_of_different_sizes(build, top_k, threshold):
    """Fewer rows than queries, more, and as many as there can be."""
    rng = np.random.default_rng(1)
    scenes = [blobs(rng, queries=23, classes=4, objects=9) for _ in range(4)]
    img_shapes = [(96, 100), (60, 128), (96, 128), (1, 1)]
    ori_shapes = [(190, 201), (61, 130), (33, 41), (1, 250)]
    cls_logits, mask_logits = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
    got = build(cls_logits, mask_logits, img_shapes, ori_shapes, top_k=top_k, score_threshold=threshold)
    assert got["masks"].shape == (4, min(top_k, 92), 190, 250)
    for i in range(4):
        sizes = {"img_shape": img_shapes[i], "ori_shape": ori_shapes[i]}
        check_image(got, i, *scenes[i], **sizes, top_k=top_k, threshold=threshold)


def test_dtypes_are_the_contracts(build):
    got = build(*(array[None] for array in blobs(np.random.default_rng(2))), [(96, 128)], [(50, 60)])
    assert {name: str(array.dtype) for name, array in got.items()} == {
        "num_instances": "int32", "scores": "float32", "labels": "int32", "boxes": "float32", "masks": "uint8",
    }  # fmt: skip


def test_stride4_masks_are_the_logits_of_the_rows(build):
    cls_logits, mask_logits = blobs(np.random.default_rng(3), queries=15, classes=1)
    inputs = (cls_logits[None], mask_logits[None], [(96, 128)], [(150, 160)])
    full = build(*inputs, top_k=12, score_threshold=0.4)
    got = build(*inputs, top_k=12, score_threshold=0.4, masks="stride4")
    want = postprocess(
        ImageLogits(cls_logits, mask_logits, img_shape=(96, 128), ori_shape=(150, 160)),
        Settings(pre_top_k=12, score_threshold=0.4),
    )
    count = len(want.scores)
    assert 0 < count < 12
    np.testing.assert_array_equal(got["masks"][0, :count], mask_logits[want.queries])
    check_padding(got, 0, count)
    for name in ("num_instances", "scores", "labels", "boxes"):
        np.testing.assert_array_equal(got[name], full[name])


def test_equal_scores_stay_in_the_order_of_the_queries(build):
    """Every query alike but for its mask, and every mask as good."""
    cls_logits = np.zeros((1, 20, 4), np.float32)
    mask_logits = np.full((1, 20, 8, 8), -4, np.float32)
    for query in range(20):
        mask_logits[0, query, query // 8 * 2 : query // 8 * 2 + 2, query % 8] = 4
    got = build(cls_logits, mask_logits, [(32, 32)], [(32, 32)], top_k=25)
    want = postprocess(
        ImageLogits(cls_logits[0], mask_logits[0], img_shape=(32, 32), ori_shape=(32, 32)), Settings(pre_top_k=25)
    )
    assert len(set(np.round(want.scores, 3))) < 5
    same = np.isclose(want.scores[:, None], want.scores, atol=1e-6)
    for row in range(25):  # rows of one score come in the same order
        rows = np.flatnonzero(same[row])
        np.testing.assert_array_equal(got["labels"][0, rows], want.labels[rows])
        np.testing.assert_array_equal(got["boxes"][0, rows], want.boxes[rows])


@pytest.mark.parametrize("value", [-5.0, 0.0])
def test_empty_masks_score_zero_and_have_zero_boxes(build, value):
    cls_logits = np.zeros((1, 2, 3), np.float32)
    got = build(cls_logits, np.full((1, 2, 4, 4), value, np.float32), [(16, 16)], [(20, 30)])
    assert got["num_instances"].tolist() == [[4]]
    assert got["scores"].tolist() == [[0] * 4]
    assert not got["boxes"].any()
    assert not got["masks"].any()


def test_a_full_mask_covers_the_image_and_scores_its_sigmoid(build):
    """Over a million pixels of one value: a naive float32 sum would be off by more than the tolerance."""
    cls_logits = np.array([[[0, -200]]], np.float32)
    got = build(cls_logits, np.full((1, 1, 4, 4), 2.7, np.float32), [(13, 16)], [(1201, 1303)])
    assert got["boxes"].tolist() == [[[0, 0, 1303, 1201]]]
    assert got["masks"].all()
    assert got["scores"][0, 0] == pytest.approx(1 / (1 + np.exp(-2.7)), abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_logit_spoils_only_its_query(build, bad):
    cls_logits, mask_logits = blobs(np.random.default_rng(7))
    clean_cls, clean_masks = np.delete(cls_logits, [0, 1], axis=0), np.delete(mask_logits, [0, 1], axis=0)
    mask_logits[0, 3, 3] = bad
    cls_logits[0, :4], cls_logits[0, 4] = -200, 200  # the query of the bad mask is no object
    cls_logits[1] = np.nan
    got = build(cls_logits[None], mask_logits[None], [(96, 128)], [(96, 128)], top_k=10)
    assert not np.isnan(got["scores"]).any()
    check_image(got, 0, clean_cls, clean_masks, img_shape=(96, 128), ori_shape=(96, 128), top_k=10)


def test_sizes_of_zero_are_survived(build):
    """Triton's warm-up sends them."""
    got = build(*(array[None] for array in blobs(np.random.default_rng(8))), [(0, 0)], [(0, 0)])
    assert got["masks"].shape == (1, 48, 1, 1)


def test_the_embedded_model_on_real_images(export):
    """Pixels may differ only where a logit rounds to the other side of 0; there are few of these."""
    engine = onnx.load(EMBEDDED)
    head = export.InstanceHead(top_k=100, score_threshold=0.05)
    session = open_session(export.attach_head(engine, head))
    logits = open_session(engine)
    batch, img_shape, ori_shape = Preprocessing(
        scale=(256, 256), input_size=(256, 256), pad_value=(124, 116, 104)
    )([path.read_bytes() for path in IMAGES])  # fmt: skip
    sizes = {"img_shape": img_shape, "ori_shape": ori_shape}
    got = dict(zip(export.OUTPUTS, session.run(list(export.OUTPUTS), {"input": batch, **sizes}), strict=True))
    scenes = zip(*logits.run(["cls_logits", "mask_logits"], {"input": batch}), strict=True)
    differing = sum(
        check_image(got, i, *scene, img_shape=tuple(img_shape[i]), ori_shape=tuple(ori_shape[i]), threshold=0.05)
        for i, scene in enumerate(scenes)
    )
    assert got["num_instances"].sum() > 0
    assert differing <= 1e-5 * got["masks"].size


@pytest.mark.parametrize("masks", ["full", "stride4"])
def test_the_graph_is_plain(export, masks):
    """Standard operators, no control flow and nothing whose work depends on values; the engine's own input first."""
    engine = onnx.load(EMBEDDED)
    before = engine.SerializeToString()
    model = export.attach_head(engine, export.InstanceHead(masks=masks))
    assert engine.SerializeToString() == before
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    added = {node.op_type for node in model.graph.node if node.name.startswith("head/")}
    assert "TopK" in added
    assert not added & {"NonZero", "Loop", "If", "Scan", "Resize", "ScatterND", "NonMaxSuppression"}
    assert [tensor.name for tensor in model.graph.input] == ["input", "img_shape", "ori_shape"]
    assert [tensor.name for tensor in model.graph.output] == list(export.OUTPUTS)


@pytest.mark.parametrize("opset", [13, 20])
def test_engines_of_other_opsets(export, opset):
    model = export.attach_head(logits_engine(opset=opset), export.InstanceHead())
    session = open_session(model)
    cls_logits, mask_logits = blobs(np.random.default_rng(4))
    inputs = {"cls_logits_in": cls_logits[None], "mask_logits_in": mask_logits[None]}
    sizes = {"img_shape": np.array([[96, 120]], np.int32), "ori_shape": np.array([[77, 99]], np.int32)}
    got = dict(zip(export.OUTPUTS, session.run(list(export.OUTPUTS), {**inputs, **sizes}), strict=True))
    check_image(got, 0, cls_logits, mask_logits, img_shape=(96, 120), ori_shape=(77, 99))


@pytest.mark.more
def test_tensorrt_takes_it(export):
    """Parsed without an error and built ahead of time, which needs no GPU; it is not run."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    model = export.attach_head(logits_engine(100, 81), export.InstanceHead())
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    profile = builder.create_optimization_profile()
    for name, shape in {"cls_logits_in": (100, 81), "mask_logits_in": (100, 200, 336)}.items():
        profile.set_shape(name, (1, *shape), (1, *shape), (2, *shape))
    for name in ("img_shape", "ori_shape"):
        profile.set_shape(name, (1, 2), (1, 2), (2, 2))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (lambda: logits_engine(names=("labels", "masks")), "output cls_logits; this one has: labels, masks"),
        (lambda: logits_engine(names=("cls_logits", "dets")), "output mask_logits; this one has: cls_logits, dets"),
        (lambda: logits_engine(kind=TensorProto.FLOAT16), "cls_logits as FLOAT with 3 dimensions.* FLOAT16"),
        (lambda: logits_engine(queries="queries"), "fixed Q and C"),
        (lambda: logits_engine(opset=11), "opsets 13 to 20; the engine's is 11"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(export, engine, message):
    from m2f_export.export_errors import ExportError

    with pytest.raises(ExportError, match=message):
        export.attach_head(engine(), export.InstanceHead())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k must be a whole number >= 1; got 0"),
        ({"score_threshold": 1.5}, "score_threshold must be a number from 0 to 1; got 1.5"),
        ({"masks": "half"}, "masks must be one of: full, stride4; got 'half'"),
        ({"mask_stride": 0}, "mask_stride must be a whole number >= 1; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(export, settings, message):
    from m2f_export.export_errors import ExportError

    with pytest.raises(ExportError, match=message):
        export.InstanceHead(**settings)
