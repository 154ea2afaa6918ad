"""TensorRT's own parser and builder on our graphs. TensorRT-RTX builds without a GPU; what it cannot do is run them."""

import re

import onnx
import pytest
from onnx import TensorProto, helper
from sources import COMMITTED, random_checkpoint

from m2f_export import engine
from m2f_export.engine import Profile, build_engine, check_target
from m2f_export.export_errors import ExportError
from m2f_export.precision import convert

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

R50 = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"
BATCHES = Profile(batch=(1, 2, 8))


@pytest.fixture(scope="module")
def r50(tmp_path_factory):
    """mmdetection's official Mask2Former R50, random weights, at 320 x 512."""
    from m2f_export.graph import export_onnx, with_input
    from m2f_export.sources.mmdetection import load_mmdet

    folder = tmp_path_factory.mktemp("r50")
    config = folder / "r50.py"
    config.write_text(f'_base_ = ["{R50}"]\n')
    source = load_mmdet(config, random_checkpoint(config))
    export_onnx(with_input(source, layout="uint8_hwc", size=(320, 512)), folder / "model.onnx")
    return onnx.load(folder / "model.onnx")


@pytest.mark.official
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_official_r50_builds_without_a_plugin(r50, precision, tmp_path):
    report = build_engine(convert(r50, precision), tmp_path / "model.plan", profile=BATCHES)
    print(report)
    assert report.backend == engine.TENSORRT_RTX
    assert report.layers > 1000
    # 44 M parameters
    assert (170e6 if precision == "fp32" else 85e6) < report.size < (230e6 if precision == "fp32" else 130e6)


@pytest.mark.more  # in half precision a test of the pipeline builds it
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_embedded_model_builds(precision, tmp_path):
    cache = tmp_path / "timing.cache"
    report = build_engine(
        convert(onnx.load(COMMITTED), precision), tmp_path / "model.plan", profile=BATCHES, timing_cache=cache,
        workspace=1 << 30,
    )  # fmt: skip
    print(report)
    assert report.size == (tmp_path / "model.plan").stat().st_size > 1e6
    assert report.seconds > 0
    assert {path.name for path in tmp_path.iterdir()} == {"model.plan", "timing.cache"}


# ---- everything that can go wrong, on graphs of one node


def tiny(*nodes, shape=("n", 8, 8, 3), kind=TensorProto.FLOAT, opset=17, domains=()):
    """x -> y through the nodes given as (operator, inputs, outputs)."""
    made = [
        helper.make_node(operator, inputs, outputs, name=f"node {operator}", **more)
        for operator, inputs, outputs, more in nodes
    ]
    graph = helper.make_graph(
        made, "tiny", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


RELU = ("Relu", ["x"], ["y"], {})


def test_uint8_pixels_may_be_moved_before_they_are_cast(tmp_path):
    model = tiny(
        ("Transpose", ["x"], ["t"], {"perm": [0, 3, 1, 2]}), ("Cast", ["t"], ["y"], {"to": TensorProto.FLOAT}),
        kind=TensorProto.UINT8,
    )  # fmt: skip
    before = model.SerializeToString()
    build_engine(model, tmp_path / "model.plan", profile=BATCHES)
    assert model.SerializeToString() == before


def test_every_parse_error_names_its_node_and_operator(tmp_path):
    model = tiny(("Foo", ["x"], ["a"], {}), ("Relu", ["a"], ["b"], {}), ("Bar", ["b"], ["y"], {}))
    with pytest.raises(
        ExportError, match=r"does not parse:\n  Foo 'node Foo': .*not found.*\n  Bar 'node Bar': .*not found"
    ):
        build_engine(model, tmp_path / "model.plan", profile=BATCHES)
    assert not list(tmp_path.iterdir())


def test_mmdeploys_custom_operators_are_refused(tmp_path):
    model = tiny(("grid_sampler", ["x", "x"], ["y"], {"domain": "mmdeploy"}), domains=["mmdeploy"])
    with pytest.raises(ExportError, match="grid_sampler 'node grid_sampler'"):
        build_engine(model, tmp_path / "model.plan", profile=BATCHES)


@pytest.mark.parametrize(
    ("shape", "profile", "message"),
    [
        (("n", 8, 8, 3), Profile(height=(8, 8, 16)), "the graph fixes the height at 8; got (8, 8, 16)"),
        ((2, 8, 8, 3), Profile(batch=(1, 1, 4)), "the graph fixes the batch at 2; got (1, 1, 4)"),
        (("n", "h", "w", 3), Profile(height=(8, 8, 8)), "the graph leaves the width free"),
        (("n", 3, "h", 8), Profile(), "the graph leaves the height free"),
        (("n", 3), Profile(), "must have one input of 4 axes, images; it has x (-1, 3)"),
    ],
)
def test_a_profile_that_does_not_fit_the_graph_is_refused(tmp_path, shape, profile, message):
    with pytest.raises(ExportError, match=re.escape(message)):
        build_engine(tiny(RELU, shape=shape), tmp_path / "model.plan", profile=profile)


def test_free_sizes_follow_the_profile(tmp_path):
    sizes = Profile(batch=(1, 2, 4), height=(64, 96, 128), width=(32, 64, 96))
    for shape in (("n", "h", "w", 3), ("n", 3, "h", "w")):
        build_engine(tiny(RELU, shape=shape), tmp_path / "model.plan", profile=sizes)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 4), (1, 4, 2), (1, 2)])
def test_a_profile_out_of_order_is_refused(sizes):
    with pytest.raises(ExportError, match="profile: width must be 1 <= smallest <= usual <= largest"):
        Profile(width=sizes)


def test_what_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"nowhere/model\.plan cannot be written"):
        build_engine(tiny(RELU), tmp_path / "nowhere/model.plan", profile=BATCHES)
    with pytest.raises(ExportError, match=r"timing cache .* cannot be read"):
        build_engine(tiny(RELU), tmp_path / "model.plan", profile=BATCHES, timing_cache=tmp_path)
    with pytest.raises(ExportError, match="workspace must be a number of bytes above 0; got 0"):
        build_engine(tiny(RELU), tmp_path / "model.plan", profile=BATCHES, workspace=0)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_fails_leaves_the_old_one(tmp_path):
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"the old one")
    with pytest.raises(ExportError):
        build_engine(tiny(("Foo", ["x"], ["y"], {})), plan, profile=BATCHES)
    assert plan.read_bytes() == b"the old one"


def test_a_timing_cache_of_something_else_is_built_anew(tmp_path):
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"not a cache" * 50)
    build_engine(tiny(RELU), tmp_path / "model.plan", profile=BATCHES, timing_cache=cache)
    assert not cache.read_bytes().startswith(b"not a cache")


def test_no_tensorrt_says_what_to_install(monkeypatch, tmp_path):
    def refuse(name, *_):
        raise ImportError(name)

    monkeypatch.setattr(engine.importlib, "import_module", refuse)
    with pytest.raises(ExportError, match=r"no TensorRT is installed: .*pip install 'm2f\[engine\]'"):
        build_engine(tiny(RELU), tmp_path / "model.plan", profile=BATCHES)


@pytest.mark.parametrize(
    ("version", "found", "wanted"),
    [
        ("10.14.1.48", ("tensorrt", engine.TENSORRT), None),
        ("8.6.3", None, "TensorRT 8.6.3 is too old: 10 or newer is needed"),
    ],
)
def test_tensorrt_comes_before_tensorrt_rtx(monkeypatch, version, found, wanted):
    class Stub:
        __name__, __version__ = "tensorrt", version

    monkeypatch.setattr(engine.importlib, "import_module", lambda _: Stub())
    if wanted:
        with pytest.raises(ExportError, match=wanted):
            engine.load_tensorrt()
    else:
        module, backend = engine.load_tensorrt()
        assert (module.__name__, backend) == found


# ---- will it load where it goes?


@pytest.mark.parametrize("target", ["10.14.1.48", "10.14.1", "10.14"])
def test_the_same_version_loads(target):
    assert check_target(engine.TENSORRT, "10.14.1.48", target) is None


@pytest.mark.parametrize("target", ["10.13.3.9", "10.14.2", "11.1"])
def test_another_version_does_not(target):
    message = check_target(engine.TENSORRT, "10.14.1.48", target)
    assert message == (
        f"the engine was built by TensorRT 10.14.1.48 and the target has {target}: a plan loads in its own version only"
    )


@pytest.mark.parametrize("target", ["26.07", "26.07-py3", "nvcr.io/nvidia/tritonserver:26.07-py3"])
def test_a_container_is_not_guessed_at(target):
    message = check_target(engine.TENSORRT, "10.14.1.48", target)
    assert "tritonserver:26.07" in message
    assert engine.SUPPORT_MATRIX in message
    assert "docker run" in message


def test_an_rtx_engine_is_not_for_triton():
    for target in ("1.7.1.116", "26.07-py3"):
        assert "Triton's tensorrt_plan backend cannot load it" in check_target(engine.TENSORRT_RTX, "1.7.1.116", target)


@pytest.mark.parametrize("target", ["", "latest", "10", "tritonserver"])
def test_a_target_that_is_neither_is_refused(target):
    with pytest.raises(ExportError, match="target must be a TensorRT version"):
        check_target(engine.TENSORRT, "10.14.1.48", target)
