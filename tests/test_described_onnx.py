"""An ONNX file of any origin, with its description: `m2f export model.onnx --describe model.json`."""

import json
import re

import numpy as np
import onnx
import pytest
from exports import m2f_export
from onnx_networks import network
from pictures import encode, photo
from sources import ROOT

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

NAMES = ["cat", "dog", "sky, grey"]
FLOATS = {
    "scale": [320, 192], "mean": [120, 110, 100], "std": [60, 58, 56], "class_names": NAMES,
    "thing_classes": ["dog", 0], "post_processing": {"score_threshold": 0.1, "pre_top_k": 4},
}  # fmt: skip
PIXELS = {key: value for key, value in FLOATS.items() if key not in ("mean", "std")}


@pytest.fixture
def write(tmp_path):
    """Write a graph and its description; return what is given to the command."""

    def written(description, **options):
        onnx.save(network(**options), tmp_path / "net.onnx")
        (tmp_path / "net.json").write_text(json.dumps(description))
        return tmp_path / "net.onnx", "--describe", tmp_path / "net.json"

    return written


def test_the_description_becomes_the_source(write):
    from m2f_export.sources.described_onnx import describe_onnx
    from m2f_export.sources.onnx_model import adopt_onnx

    graph, _, description = write({**FLOATS, "size_rule": "huggingface", "pad_divisor": 64, "float_pad_value": -1.5})
    source = adopt_onnx(graph, describe_onnx(graph, description), graph.with_name("adopted.onnx"))
    assert (source.facts.class_names, source.facts.thing_classes) == (tuple(NAMES), {0, 1})
    assert (source.facts.mask_stride, source.num_classes) == (4, 3)
    assert (source.settings.score_threshold, source.settings.pre_top_k) == (0.1, 4)
    preprocessing = source.preprocessing
    assert (preprocessing.layout, preprocessing.scale, preprocessing.input_size) == ("float32_chw", (320, 192), None)
    assert (preprocessing.size_rule, preprocessing.pad_divisor) == ("huggingface", 64)
    assert (preprocessing.mean, preprocessing.std) == ((120, 110, 100), (60, 58, 56))
    assert preprocessing.float_pad_value == -1.5


@pytest.mark.parametrize("stated", [{}, {"input_size": [128, 192]}])
def test_the_graph_states_its_size_and_its_layout(write, stated):
    from m2f_export.sources.described_onnx import describe_onnx

    stretched = {**PIXELS, "scale": [192, 128], "keep_ratio": False, **stated}
    graph, _, description = write(stretched, layout="uint8_hwc", size=(128, 192))
    preprocessing = describe_onnx(graph, description).preprocessing
    assert (preprocessing.layout, preprocessing.input_size) == ("uint8_hwc", (128, 192))


@pytest.mark.parametrize(
    ("layout", "description"),
    [
        pytest.param("float32_chw", FLOATS, marks=pytest.mark.official),
        pytest.param("uint8_hwc", PIXELS, marks=pytest.mark.more),
    ],
)
def test_it_is_served_through_triton(write, tmp_path, layout, description):
    """From a graph of no framework to instances: compared with the graph in ONNX Runtime and `postprocess`."""
    import onnxruntime as ort

    from m2f.logits import ImageLogits
    from m2f.panoptic import panoptic
    from m2f.postprocess import postprocess
    from m2f_client import Client
    from m2f_export.sources.described_onnx import describe_onnx
    from m2f_server import serve

    graph, *options = write(description, layout=layout)
    result = m2f_export(graph, *options, "--repository", tmp_path / "mine", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["source"] == "described ONNX"
    assert (report["class_names"], report["thing_classes"]) == (NAMES, [0, 1])
    assert [step["name"] for step in report["comparison"]["steps"]] == ["Triton"]
    source = describe_onnx(graph, options[1])
    picture = encode(photo(150, 260))
    pixels, img_shape, ori_shape = source.preprocessing([picture])
    cls_logits, mask_logits = ort.InferenceSession(graph).run(["cls_logits", "mask_logits"], {"input": pixels})
    image = ImageLogits(cls_logits[0], mask_logits[0], img_shape=tuple(img_shape[0]), ori_shape=tuple(ori_shape[0]))
    want = postprocess(image, source.settings, source.facts)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        serve(model_repository=tmp_path / "mine", config_name="cpu", **ports) as server,
        Client(f"grpc://{server.grpc_url}") as client,
    ):
        got = client.predict(picture)
        maps = client.predict(picture, outputs=["segments", "panoptic"], panoptic_score_threshold=0.1)
    assert len(want.scores)
    assert (got.labels.tolist(), got.rle) == (want.labels.tolist(), want.rle)
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)
    settings = source.settings.override({"panoptic_score_threshold": 0.1})
    np.testing.assert_array_equal(maps.panoptic, panoptic(image, settings, source.facts).ids)


def test_a_given_graph_is_rewritten_and_compared_with_what_it_was(write, tmp_path):
    given, *options = write(FLOATS, einsum=True)
    result = m2f_export(given, *options, "--onnx", tmp_path / "faster.onnx", "--json")
    assert result.exit_code == 0, result.output
    comparison = json.loads(result.stdout)["comparison"]
    assert (comparison["first"], [step["name"] for step in comparison["steps"]]) == ("ONNX Runtime", ["rewritten"])
    assert "Einsum" in {node.op_type for node in onnx.load(given).graph.node}
    assert "Einsum" not in {node.op_type for node in onnx.load(tmp_path / "faster.onnx").graph.node}


REFUSED = {
    "not an object": ([], r"net\.json is not a JSON object, but list"),
    "unknown key": ({**FLOATS, "sclae": 1}, r"net\.json: unknown key 'sclae'; allowed: scale, scale_factor"),
    "no scale": ({"class_names": NAMES}, r"net\.json: scale is missing; a graph that takes floats needs: scale, "),
    "no mean": ({"scale": [1, 1], "class_names": NAMES}, "mean is missing; a graph that takes floats needs: scale,"),
    "scale": ({**FLOATS, "scale": 800}, r"parameter 'scale' must be two whole numbers >= 1, .*; got 800"),
    "mean": ({**FLOATS, "mean": [0.5]}, r"parameter 'mean' must have 3 numbers, for 'color' is rgb; got \(0\.5,\)"),
    "std": ({**FLOATS, "std": [0.2, 0.2, 0.2]}, r"'std' is \[0\.2, .*; allowed: three numbers >= 1.* by 255"),
    "resample": ({**FLOATS, "resample": "area"}, "parameter 'resample' must be one of: opencv_bilinear, "),
    "colour": ({**FLOATS, "color": "grey"}, "parameter 'color' must be one of: rgb, opencv_grey, pillow_grey"),
    "pad_value": ({**FLOATS, "pad_value": [0, 0, 0]}, "pad_value has no effect: the graph takes floats; allowed: flo"),
    "layout": ({**FLOATS, "layout": "float32_chw"}, "unknown key 'layout'; allowed: "),
    "names": ({**FLOATS, "class_names": "cat"}, "class_names is 'cat'; allowed: a list of names"),
    "a name": ({**FLOATS, "class_names": ["a", 2, "b"]}, "class_names: the name of class 1 is 2; allowed: text"),
    "too few names": ({**FLOATS, "class_names": ["cat", "dog"]}, r"cls_logits are \[1, 5, 4\]; allowed: \[1, 5, 3\]"),
    "things": ({**FLOATS, "thing_classes": "dog"}, "'thing_classes' must be a list of class names or indices; got 'd"),
    "a thing": ({**FLOATS, "thing_classes": ["cow"]}, "'thing_classes' has no class 'cow'; allowed: 0 to 2; names: c"),
    "a thing's index": ({**FLOATS, "thing_classes": [3]}, "'thing_classes' has no class 3; allowed: 0 to 2"),
    "stride": ({**FLOATS, "mask_stride": 8}, "masks are at stride 4; mask_stride is 8; allowed: 4"),
    "no stride": ({**FLOATS, "mask_stride": 0}, "parameter 'mask_stride' must be a whole number >= 1; got 0"),
    "divisor": ({**FLOATS, "pad_divisor": 2}, "masks are at stride 4; allowed: a pad_divisor that is a multiple of it"),
    "post_processing": ({**FLOATS, "post_processing": 0.5}, "parameter 'post_processing' must be an object such as"),
    "its key": ({**FLOATS, "post_processing": {"top_k": 5}}, "post_processing has no key 'top_k'; allowed: score_thr"),
    "its value": (
        {**FLOATS, "post_processing": {"score_threshold": 2}},
        "'score_threshold' must be a number from 0 to",
    ),
    "its class": ({**FLOATS, "post_processing": {"classes": "cow"}}, "parameter 'classes' has no class 'cow'"),
    "its threshold": (
        {**FLOATS, "post_processing": {"class_score_thresholds": "cow=0.5"}},
        "'class_score_thresholds' has no class 'cow'",
    ),
    "a thing that is a list": (
        {**FLOATS, "thing_classes": [[1]]},
        r"'thing_classes' must be a list of .*; got \[\[1\]\]",
    ),
    "large scale": (
        {**FLOATS, "scale": [10**12, 10**12]},
        "scale makes inputs of 1000000000000 pixels; allowed: up to",
    ),
    "large divisor": (
        {**FLOATS, "pad_divisor": 10**9},
        "pad_divisor makes inputs of 1000000000 pixels; allowed: up to",
    ),
    "infinite": ({**FLOATS, "mean": [float("inf"), 0, 0]}, r"mean is \[inf, 0, 0\]; allowed: finite numbers"),
    "large": ({**FLOATS, "input_size": [10**6, 32]}, "input_size: an input of .*; allowed: up to 8192 pixels a side"),
}


def refused(result, message):
    assert result.exit_code == 1, result.output
    assert re.search(message, result.stderr), result.stderr
    *steps, _ = result.stderr.strip().splitlines()
    assert all(re.fullmatch(r"\w+: [\d.]+ s", step) for step in steps), result.stderr


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named_by_its_key(write, tmp_path, case):
    description, message = REFUSED[case]
    refused(m2f_export(*write(description), "--onnx", tmp_path / "model.onnx"), message)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({**PIXELS, "mean": [0, 0, 0]}, "mean has no effect: the graph takes uint8 pixels and normalises by itself"),
        ({**PIXELS, "input_size": [64, 64]}, r"'input_size' is \[64, 64\], and the graph takes \[128, 192\] only"),
    ],
)
def test_what_the_graph_contradicts_is_named(write, tmp_path, description, message):
    options = write(description, layout="uint8_hwc", size=(128, 192))
    refused(m2f_export(*options, "--onnx", tmp_path / "model.onnx"), message)


def test_other_arguments_beside_a_description_are_named(write, tmp_path):
    graph, *options = write(FLOATS)
    target = ["--onnx", tmp_path / "model.onnx"]
    refused(m2f_export(graph, graph, *options, *target), "--describe is for an ONNX file alone: .*net.onnx is one too")
    refused(m2f_export(tmp_path, *options, *target), "is a folder; allowed: a file")
    refused(m2f_export(options[1], *options, *target), r"net\.json is not an ONNX model")
    refused(m2f_export(graph, "--describe", tmp_path / "no.json", *target), r"no\.json: no such file")
    refused(m2f_export(graph, *options, *target, "--size", 64, 64), "has its own input size: --size is for a graph")
    refused(m2f_export(graph, *target), r"needs its configuration too: .*, or its description: .* --describe FILE")


def test_every_key_is_documented():
    from m2f_export.sources.described_onnx import DESCRIPTION_KEYS

    page = (ROOT / "docs/export.md").read_text()
    table = page.partition("| key | meaning |\n")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == set(DESCRIPTION_KEYS)
