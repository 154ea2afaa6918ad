"""Tiny models of random weights, as `save_pretrained` writes them: their network, their pixels, their faults."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from exports import m2f_export
from json_mutations import ODD, mutated_json
from pictures import encode, photo
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from huggingface_models import (  # noqa: E402
    EOMT,
    EOMT_DINOV3,
    MASK2FORMER,
    MASKFORMER,
    NAMES,
    ONEFORMER,
    build,
    load_huggingface,
    processor_for,
    resnet,
    save,
    swin,
)
from safetensors.torch import save_file  # noqa: E402

from m2f_export.export_errors import ExportError  # noqa: E402
from m2f_export.sources.huggingface_folder import ARCHITECTURES, read_labels  # noqa: E402
from m2f_export.sources.huggingface_processor import read_preprocessing  # noqa: E402

PLAIN = [name for name in ARCHITECTURES if name != ONEFORMER]

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

SIZES = [(1, 1), (20, 63), (30, 41), (100, 100), (257, 131), (131, 257), (333, 500), (500, 333), (37, 900)]


def smooth(batch, size, seed=0):
    """Normalised pictures: white noise would put mask logits within rounding of 0, and attention masks would flip."""
    coarse = np.random.default_rng(seed).normal(size=(batch, 8, 8, 3)).astype(np.float32)
    images = [cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC) for image in coarse]
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def to_session(network, *, size, free_size):
    names, axes = ["cls_logits", "mask_logits"], {"input": {0: "n"}, "cls_logits": {0: "n"}, "mask_logits": {0: "n"}}
    if free_size:
        axes["input"] |= {2: "h", 3: "w"}
        axes["mask_logits"] |= {2: "mask_h", 3: "mask_w"}
    file = io.BytesIO()
    torch.onnx.export(
        network, (torch.zeros(2, 3, *size),), file, input_names=["input"], output_names=names, dynamic_axes=axes,
        opset_version=17, dynamo=False,
    )  # fmt: skip
    assert {node.domain for node in onnx.load_from_string(file.getvalue()).graph.node} == {""}
    return ort.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("architecture", "backbone", "traced_at", "others"),
    [
        # windows of 4 fit 128 x 128 at every stage: a trace that believed it would never pad for another size
        pytest.param(MASK2FORMER, swin(4), (128, 128), [(64, 96), (160, 96)], id="mask2former-swin"),
        pytest.param(
            MASKFORMER, swin(4), (128, 128), [(64, 96), (160, 96)], id="maskformer-swin", marks=pytest.mark.more
        ),
        pytest.param(MASKFORMER, resnet(), (64, 96), [(96, 64)], id="maskformer-resnet"),
        pytest.param(ONEFORMER, swin(4), (128, 128), [(64, 96), (160, 96)], id="oneformer-swin"),
        pytest.param(EOMT, None, (64, 64), [], id="eomt"),
        pytest.param(EOMT_DINOV3, None, (64, 64), [], id="eomt-dinov3", marks=pytest.mark.more),
    ],
)
def test_the_network_is_transformers_own_and_its_trace_is_free(tmp_path, architecture, backbone, traced_at, others):
    reference = build(architecture, backbone=backbone)
    source = load_huggingface(
        save(tmp_path, architecture, model=reference), "panoptic" if architecture == ONEFORMER else None
    )
    task = {"task_inputs": source.network.task.expand(5, -1)} if architecture == ONEFORMER else {}
    session = to_session(source.network, size=traced_at, free_size=bool(others))
    for height, width in [traced_at, *others]:
        images = smooth(5, (height, width))
        with torch.inference_mode():
            theirs = reference(pixel_values=torch.from_numpy(images), **task)
            ours = source.network(torch.from_numpy(images))
        assert ours[0].shape == (5, 10, 4)
        assert ours[1].shape == (5, 10, height // 4, width // 4)
        for want, got in zip((theirs.class_queries_logits, theirs.masks_queries_logits), ours, strict=True):
            assert float((got - want).abs().max() / want.abs().max()) <= 2e-6
        alone = [session.run(None, {"input": images[i : i + 1]}) for i in range(5)]
        for batch in (1, 2, 5):
            together = session.run(None, {"input": images[:batch]})
            for want, got, rows in zip(ours, together, zip(*alone, strict=True), strict=True):
                np.testing.assert_allclose(got, want[:batch], rtol=0, atol=1e-3)
                np.testing.assert_allclose(got, np.concatenate(rows[:batch]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("architecture", PLAIN)
def test_the_source_says_what_the_folder_says(folders, architecture):
    source = load_huggingface(folders[architecture])
    eomt = architecture in (EOMT, EOMT_DINOV3)
    assert source.kind == f"Hugging Face {architecture}"
    assert (source.facts.class_names, source.num_classes) == (tuple(NAMES), 3)
    assert (source.fixed_size, source.divisor) == (((64, 64), 16) if eomt else (None, 32))
    assert not source.network.training
    assert source.settings.score_threshold == 0
    preprocessing = source.preprocessing
    assert preprocessing.resample == "pillow_bilinear"
    np.testing.assert_allclose(preprocessing.mean, (123.675, 116.28, 103.53))
    np.testing.assert_allclose(preprocessing.std, (58.395, 57.12, 57.375))
    assert preprocessing.pad_value == ((0, 0, 0) if eomt else (124, 116, 104))


def test_class_names_are_sorted_by_label_and_generic_ones_kept(tmp_path):
    save(tmp_path, model=build(MASK2FORMER, id2label={10 - i: f"LABEL_{10 - i}" for i in range(11)}, label2id=None))
    assert load_huggingface(tmp_path).facts.class_names == tuple(f"LABEL_{i}" for i in range(11))


@pytest.mark.parametrize(
    "options", [{"max_shard_size": "100KB"}, {"binary": True}], ids=["shards", "pytorch_model.bin"]
)
def test_other_weight_files_are_read(tmp_path, folders, options):
    model = build(MASK2FORMER)
    if options.pop("binary", False):
        shutil.copytree(folders[MASK2FORMER], tmp_path, dirs_exist_ok=True)
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        save(tmp_path, model=model, **options)
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    images = torch.from_numpy(smooth(1, (64, 96)))
    with torch.inference_mode():
        got, want = (load_huggingface(path).network(images) for path in (tmp_path, folders[MASK2FORMER]))
    torch.testing.assert_close(got, want)


# --- preprocessing: what the engine gets is what the processor makes -------------------------------------------------

PROCESSORS = {
    "range": (MASK2FORMER, {}),
    "range, large": (MASK2FORMER, {"size": {"shortest_edge": 200, "longest_edge": 333}, "size_divisor": 64}),
    "bicubic": (MASK2FORMER, {"resample": 3}),
    "exact": (MASK2FORMER, {"size": {"height": 96, "width": 128}}),
    "exact, rounded up to the divisor": (MASK2FORMER, {"size": {"height": 70, "width": 100}}),
    "another normalisation": (MASK2FORMER, {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}),
    "no normalisation": (MASK2FORMER, {"do_normalize": False}),
    "no rescaling": (MASK2FORMER, {"do_rescale": False, "image_mean": [128, 128, 128], "image_std": [64, 64, 64]}),
    "maskformer": (MASKFORMER, {}),
    "null": (MASK2FORMER, {"do_rescale": None, "do_normalize": None, "image_mean": None, "rescale_factor": None}),
    "eomt": (EOMT, {}),
    "eomt, exact": (EOMT, {"size": {"height": 64, "width": 64}, "do_pad": False}),
}


def assert_inputs_are_pixel_values(preprocessing, processor, sizes, *, black):
    """The engine's input, normalised, is what the processor makes of the same pictures."""
    pictures = [photo(*size, seed=seed) for seed, size in enumerate(sizes)]
    want = processor([Image.fromarray(picture) for picture in pictures], return_tensors="np")["pixel_values"]
    pixels, img_shape, _ = preprocessing([encode(picture) for picture in pictures])
    got = (pixels.astype(np.float64) - preprocessing.mean) / preprocessing.std
    if not black:  # pads zeros after normalising; the nearest uint8 is not exactly there
        for image, (height, width) in zip(got, img_shape, strict=True):
            padding = np.r_[image[height:].ravel(), image[:, width:].ravel()]
            assert (np.abs(padding) <= 0.5 / np.min(preprocessing.std) + 1e-9).all()
            image[height:], image[:, width:] = 0, 0
    rounding = 1e-6 * max(10, np.abs(want).max())  # of float32, where a large mean is subtracted
    np.testing.assert_allclose(got.transpose(0, 3, 1, 2), want, rtol=0, atol=rounding)


@pytest.mark.parametrize("case", PROCESSORS)
def test_engine_inputs_are_the_processors_pixel_values(tmp_path, case):
    architecture, changes = PROCESSORS[case]
    processor = processor_for(architecture, **changes)
    processor.save_pretrained(tmp_path)
    preprocessing = read_preprocessing(tmp_path)
    for sizes in [[size] for size in SIZES] + [SIZES]:  # alone, and one batch that is padded to the largest
        assert_inputs_are_pixel_values(preprocessing, processor, sizes, black=architecture == EOMT)


ODD_SIZES = [
    800, 64, [64, 96], [96, 64, 3], {"shortest_edge": 64}, {"longest_edge": 96}, {"height": 64},
    {"height": 64, "width": 96}, {"height": 64, "width": 96, "shortest_edge": 64, "longest_edge": 96},
    {"shortest_edge": 64.5, "longest_edge": 96}, {"shortest_edge": "64", "longest_edge": 96},
    {"shortest_edge": 64, "longest_edge": 10**9}, {"height": 10**9, "width": 64}, {"height": -64, "width": 64},
    {"shortest_edge": 64, "longest_edge": None}, {"max_height": 64, "max_width": 96},
]  # fmt: skip


@pytest.mark.parametrize("architecture", [MASK2FORMER, pytest.param(EOMT, marks=pytest.mark.more)])
@pytest.mark.parametrize("examples", [25, pytest.param(3000, marks=pytest.mark.chaos)])
def test_any_other_value_is_reproduced_or_refused(tmp_path, architecture, examples):
    """What transformers ignores is ignored; anything else acts as in its own processor."""
    path = tmp_path / "preprocessor_config.json"
    processor_for(architecture).save_pretrained(tmp_path)
    stated = json.loads(path.read_text())
    settings = {"resample": 2, "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    nulls = {"crop_size": None, "do_center_crop": None, "do_convert_rgb": None, "pad_size": None, "data_format": None}
    document = stated | settings | nulls

    @hypothesis.settings(max_examples=examples, database=None)
    @hypothesis.given(mutated_json(document, odd=[*ODD, *ODD_SIZES]))
    def check(content):
        path.write_text(json.dumps(content))
        preprocessing = None
        with contextlib.suppress(ExportError):
            preprocessing = read_preprocessing(tmp_path)
        if (
            preprocessing is None
            or max(min(preprocessing.scale), *(preprocessing.input_size or (0,)), preprocessing.pad_divisor) > 512
        ):
            return  # refused; or the same rule, more slowly
        name = content.get("image_processor_type") or content["feature_extractor_type"]
        processor = getattr(transformers, f"{name.removesuffix('Fast').removesuffix('Pil')}Pil").from_dict(content)
        assert_inputs_are_pixel_values(preprocessing, processor, [(30, 41)], black="Eomt" in name)

    check()


def test_older_spellings_of_a_processor_are_read(tmp_path):
    older = {
        "feature_extractor_type": "MaskFormerFeatureExtractor", "do_resize": True, "size": 64, "max_size": 96,
        "size_divisibility": 32, "resample": 2, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "ignore_index": 255, "reduce_labels": False,
    }  # fmt: skip
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(older))
    processor_for(MASK2FORMER).save_pretrained(tmp_path / "now")
    assert read_preprocessing(tmp_path) == read_preprocessing(tmp_path / "now")


# --- faults ----------------------------------------------------------------------------------------------------------


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A good folder of each architecture."""
    return {name: save(tmp_path_factory.mktemp("models") / name, name) for name in PLAIN}


@pytest.fixture
def broken(folders, tmp_path):
    """A copy of a good folder, to be broken."""
    return lambda architecture=MASK2FORMER: shutil.copytree(folders[architecture], tmp_path / "broken")


def test_missing_files_are_named(tmp_path, broken):
    with pytest.raises(ExportError, match=r"nowhere/config\.json: no such file"):
        load_huggingface(tmp_path / "nowhere")
    folder = broken()
    for name in ("model.safetensors", "preprocessor_config.json", "config.json"):
        (folder / name).unlink()
        with pytest.raises(ExportError, match=name):
            load_huggingface(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[1]", "is not a JSON object"), (b"\xff", "JSON")]
)
def test_files_that_are_not_json_are_named(broken, name, text, message):
    path = broken() / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ExportError, match=f"{name} {message}" if message != "JSON" else name):
        load_huggingface(path.parent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["DetrForSegmentation"]},
            "'DetrForSegmentation' is not supported; supported: Mask2FormerFor",
        ),
        ({"architectures": None}, "architecture None is not supported"),
        ({"architectures": []}, "architecture None is not supported"),
        ({"architectures": [["x"]]}, "is not supported; supported"),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18"}}, "backbones of timm"),
        ({"decoder_layers": 6}, r"do not fit config.json: \d+ missing \(model\."),
        ({"decoder_layers": 3}, r"do not fit config.json: \d+ unexpected \(model\."),
        ({"num_queries": 12}, r"do not fit config.json: 2 mismatched \(model\."),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, "id2label must number its 3 classes from 0 without gaps; got 3"),
        ({"hidden_dim": "wide"}, "cannot be loaded as Mask2FormerForUniversalSegmentation: .*hidden_dim"),
        ({"num_attention_heads": 5}, "cannot be loaded as Mask2FormerForUniversalSegmentation: .*divisible"),
        ({"num_queries": 10**9}, r"describes \d+ numbers, the files have \d+ bytes"),
        ({"hidden_dim": 10**30}, "cannot be loaded as Mask2FormerForUniversalSegmentation: "),
        ({"decoder_layers": 10**9}, r"config\.json: decoder_layers is 1000000000; allowed: up to 1000"),
        ({"backbone_config": {"model_type": "swin", "depths": [10**9]}}, r"depths is 1000000000; allowed"),
        (
            {"backbone_config": None, "backbone": "microsoft/swin-tiny"},
            "'microsoft/swin-tiny' is a name, and nothing is",
        ),
        ({"backbone_config": {"model_type": "nothing"}}, "cannot be loaded as .*: KeyError: 'nothing'"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config is not supported"),
    ],
)
def test_wrong_configurations_are_named(broken, changes, message):
    folder = broken()
    edit(folder / "config.json", **changes)
    with pytest.raises(ExportError, match=f"(?s){message}"):
        load_huggingface(folder)


@pytest.mark.parametrize("kept", [0, 4, 0.5])
def test_corrupt_weights_are_refused(broken, kept):
    folder = broken()
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ExportError, match=r"model\.safetensors is (empty|incomplete, or not a safetensors file)"):
        load_huggingface(folder)


def test_a_pickle_that_runs_code_is_refused(broken, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    folder = broken()
    (folder / "model.safetensors").unlink()
    torch.save({**build(MASK2FORMER).state_dict(), "weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ExportError, match="cannot be loaded"):
        load_huggingface(folder)
    assert not (tmp_path / "sprung").exists()


# --- class names ------------------------------------------------------------------------------------------------------

NO_NAMES = [
    ({"0": "a", "1": 7}, r"id2label: the name of class 1 is 7; allowed: text"),
    ({"0": None}, r"the name of class 0 is None; allowed: text"),
    ({"0": ["a"]}, r"the name of class 0 is \['a'\]"),
    ({"0": "\ud800"}, r"the name of class 0 is '\\ud800'"),
    ({"1": "a", "2": "b"}, r"id2label must number its 2 classes from 0 without gaps; got 2$"),
    ({"0": "a", "2": "b"}, r"without gaps; got 2$"),
    ({"0": "a", "01": "b"}, r"without gaps; got 01$"),
    ({"0": "a", "cat": "b"}, r"without gaps; got cat$"),
    ({"-1": "a", "0": "b"}, r"without gaps; got -1$"),
    ({}, r"id2label is \{\}; allowed: an object such as"),
    (["a", "b"], r"id2label is \['a', 'b'\]; allowed: an object such as"),
    ("cat", r"id2label is 'cat'; allowed"),
    (7, r"id2label is 7; allowed"),
    ({str(label): "a" for label in range(10_001)}, r"id2label: 10001 classes; allowed: up to 10000"),
]


@pytest.mark.parametrize(("labels", "message"), NO_NAMES)
def test_labels_that_are_no_names_are_refused(tmp_path, labels, message):
    with pytest.raises(ExportError, match=rf"config\.json: (id2label.*)?{message}"):
        read_labels({"id2label": labels}, tmp_path / "config.json")


@pytest.mark.parametrize("count", [4, 0, -1, 2.5, "3", True, 10**9])
def test_a_number_of_labels_that_disagrees_is_refused(tmp_path, count):
    for labels in ({"0": "a", "1": "b", "2": "c"}, None):
        if (labels, count) == (None, 4):
            continue
        with pytest.raises(ExportError, match=rf"config\.json: num_labels is '?{count}'?"):
            read_labels({"id2label": labels, "num_labels": count}, tmp_path / "config.json")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": {"1": "b", "0": "a"}}, ("a", "b")),
        ({"id2label": {"0": "a", "1": "a"}}, ("a", "a")),  # COCO has eleven `N/A`
        ({"id2label": {"0": "a, b", "1": ""}, "num_labels": 2}, ("a, b", "")),
        ({"id2label": {"0": "a"}, "num_labels": None}, ("a",)),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({}, ("LABEL_0", "LABEL_1")),  # what transformers takes, and leaves out when it writes
    ],
)
def test_labels_are_transformers_own(tmp_path, config, names):
    assert read_labels(config, tmp_path / "config.json") == names
    theirs = transformers.Mask2FormerConfig.from_dict({key: value for key, value in config.items() if value})
    assert tuple(theirs.id2label[label] for label in range(theirs.num_labels)) == names


# --- files ------------------------------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4838904\n"
FILES = {
    "pointer": (POINTER, "is a Git LFS pointer, not the file itself: git lfs install && git lfs pull"),
    "empty": (b"", "is empty"),
    "page": (b"<!DOCTYPE html>\n<html>", "is a web page"),
}


@pytest.fixture
def sharded(tmp_path):
    """A folder whose weights are in fifteen files."""
    save(tmp_path / "sharded", max_shard_size="100KB")
    return tmp_path / "sharded"


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_file_that_is_only_a_stand_in_is_named(broken, name, case):
    folder, (content, message) = broken(), FILES[case]
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"broken/{name} {message}"):
        load_huggingface(folder)


def test_a_stand_in_for_a_shard_an_index_or_a_pickle_is_named(sharded, broken):
    shard = sorted(sharded.glob("model-*.safetensors"))[2]
    shard.write_bytes(POINTER)
    with pytest.raises(ExportError, match=f"{shard.name} is a Git LFS pointer"):
        load_huggingface(sharded)
    (sharded / "model.safetensors.index.json").write_bytes(POINTER)
    with pytest.raises(ExportError, match=r"model\.safetensors\.index\.json is a Git LFS pointer"):
        load_huggingface(sharded)
    folder = broken()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"pytorch_model\.bin is a safetensors file: name it pytorch_model\.saf"):
        load_huggingface(folder)
    (folder / "pytorch_model.bin").write_bytes(POINTER)
    with pytest.raises(ExportError, match=r"pytorch_model\.bin is a Git LFS pointer"):
        load_huggingface(folder)


def test_missing_shards_are_counted_and_named(sharded):
    for shard in sorted(sharded.glob("model-*.safetensors"))[:4]:
        shard.unlink()
    with pytest.raises(
        ExportError, match=r"index\.json names 15 files, and 4 are missing: model-00001-of-00015\.safetensors, .*, …$"
    ):
        load_huggingface(sharded)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], r"index\.json is not a JSON object, but list"),
        ({}, r"index\.json has no 'weight_map'"),
        ({"weight_map": {"a": 7}}, r"index\.json has no 'weight_map'"),
        ({"weight_map": {}}, r"index\.json has no 'weight_map'"),
        ({"weight_map": {"a": "../../etc/passwd"}}, r"names '../../etc/passwd'; allowed: files of weights"),
    ],
)
def test_an_index_that_is_none_is_named(sharded, index, message):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match=message):
        load_huggingface(sharded)


def test_a_folder_without_weights_says_what_it_has(broken):
    folder = broken()
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(
        ExportError, match=r"broken has no weights; allowed: model\.safetensors or pytorch_model\.bin.*; found "
    ):
        load_huggingface(folder)
    (folder / "model.safetensors").symlink_to("../blobs/1a2b")  # a copy of the Hub's cache without its blobs
    with pytest.raises(ExportError, match=r"model\.safetensors is a link to \.\./blobs/1a2b, which does not exist"):
        load_huggingface(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_wrapped_weights_are_found(broken, folders, prefix, name):
    folder, weights = broken(), {prefix + key: tensor for key, tensor in build(MASK2FORMER).state_dict().items()}
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / name) if name == "model.safetensors" else torch.save(weights, folder / name)
    images = torch.from_numpy(smooth(1, (64, 96)))
    with torch.inference_mode():
        got, want = (load_huggingface(path).network(images) for path in (folder, folders[MASK2FORMER]))
    torch.testing.assert_close(got, want)


def test_weights_of_a_training_that_diverged_are_refused(broken):
    folder, model = broken(), build(MASK2FORMER)
    model.class_predictor.bias.data[1] = float("nan")
    save_file(model.state_dict(), folder / "model.safetensors")
    with pytest.raises(ExportError, match=r"broken: 1 weights hold NaN or infinity \(class_predictor\.bias\)"):
        load_huggingface(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "config.json",
            {"id2label": {"0": 7, "1": "b", "2": "c"}},
            r"config\.json: id2label: the name of class 0 is 7",
        ),
        ("config.json", {"num_labels": 5}, r"config\.json: num_labels is 5, and id2label has 3 names"),
        (
            "preprocessor_config.json",
            {"image_mean": [0.5, 0.5]},
            r"preprocessor_config\.json: .* image_mean \(0\.5, 0\.5\)",
        ),
        ("model.safetensors", POINTER, r"model\.safetensors is a Git LFS pointer"),
    ],
)
def test_the_command_says_it_in_a_line(broken, tmp_path, name, changes, message):
    folder = broken()
    (folder / name).write_bytes(changes) if isinstance(changes, bytes) else edit(folder / name, **changes)
    result = m2f_export(folder, "--onnx", tmp_path / "model.onnx")
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "examples", [pytest.param(10, marks=pytest.mark.more), pytest.param(500, marks=pytest.mark.chaos)]
)
def test_any_other_configuration_is_loaded_or_refused(broken, examples):
    """In bounded memory: a configuration is refused if it describes more than the files of the weights can hold."""
    folder = broken()
    path = folder / "config.json"
    document = json.loads(path.read_text())

    @hypothesis.settings(max_examples=examples, database=None)
    @hypothesis.given(mutated_json(document))
    def check(content):
        path.write_text(json.dumps(content))
        with contextlib.suppress(ExportError):
            load_huggingface(folder)

    check()


def test_code_of_the_folder_is_never_run(broken, tmp_path):
    folder = broken()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Model: ...\nclass Config: ...\n")
    edit(folder / "config.json", auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"})
    edit(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Model"})
    load_huggingface(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        (
            MASK2FORMER,
            {"image_processor_type": "DetrImageProcessor"},
            "'DetrImageProcessor' is not supported; supported:",
        ),
        (MASK2FORMER, {"do_resize": False}, "cannot reproduce do_resize false"),
        (MASK2FORMER, {"do_resize": None}, "cannot reproduce do_resize null"),
        (MASK2FORMER, {"do_center_crop": True}, "transformers itself cannot use it: "),
        (MASK2FORMER, {"resample": None}, "cannot reproduce resample None"),
        (MASK2FORMER, {"resample": 1}, "cannot reproduce resample 1"),
        (MASK2FORMER, {"resample": 1, "do_resize": False}, "do_resize false; resample 1"),
        (MASK2FORMER, {"image_mean": [0.5]}, r"cannot reproduce image_mean \(0.5,\) \(allowed: three"),
        (MASK2FORMER, {"image_mean": [0.5, None, 0.5]}, r"image_mean \(0.5, None, 0.5\) \(allowed: three numbers"),
        (MASK2FORMER, {"image_mean": [128, 128, 128]}, r"image_mean \(128, 128, 128\) of pixels times 0.003922"),
        (MASK2FORMER, {"image_std": [0.2, 0, 0.2]}, r"image_std \(0.2, 0, 0.2\) \(allowed: three numbers above 0"),
        (MASK2FORMER, {"image_std": 0.2}, r"image_std 0.2 \(allowed: three numbers above 0"),
        (MASK2FORMER, {"rescale_factor": 0}, r"rescale_factor 0 \(allowed: a number above 0"),
        (MASK2FORMER, {"rescale_factor": "1/255"}, r"rescale_factor '1/255' \(allowed: a number above 0"),
        (MASK2FORMER, {"resample": "bilinear"}, r"resample 'bilinear' \(allowed: 2, bilinear"),
        (MASK2FORMER, {"resample": [2]}, r"resample \[2\] \(allowed: 2, bilinear"),
        (MASK2FORMER, {"size": 800}, r"size \{'shortest_edge': 800\} \(allowed"),
        (MASK2FORMER, {"size": {"height": 10**9, "width": 64}}, r"size .* \(allowed: height and width up to 8192"),
        (MASK2FORMER, {"size": {"shortest_edge": 64.5, "longest_edge": 96}}, r"size .*64.5.* \(allowed"),
        (MASK2FORMER, {"size_divisor": 32.0}, r"size_divisor 32.0 \(allowed: a whole number"),
        (MASK2FORMER, {"image_processor_type": None}, "image processor None is not supported"),
        (MASK2FORMER, {"size": {"max_height": 64, "max_width": 64}}, "cannot reproduce size .*max_height"),
        (MASK2FORMER, {"size": {"shortest_edge": 64}}, "cannot reproduce size .*shortest_edge"),
        (MASK2FORMER, {"size": {"shortest_edge": 96, "longest_edge": 64}}, "cannot reproduce size"),
        (MASK2FORMER, {"size_divisor": 0}, "size_divisor 0 .*multiples of 32"),
        (MASK2FORMER, {"size_divisor": 16}, "size_divisor 16 .*multiples of 32"),
        (MASK2FORMER, {"size": {"height": 100, "width": 64}, "size_divisor": 0}, "multiples of 32"),
        (MASK2FORMER, {"pad_size": {"height": 128, "width": 128}}, "cannot reproduce pad_size"),
        (MASK2FORMER, {"size": "large"}, "preprocessor_config.json"),
        (EOMT, {"size": None}, r"size null \(allowed"),
        (EOMT, {"do_split_image": True}, "cannot reproduce do_split_image true"),
        (EOMT, {"do_pad": False}, "do_pad False"),
        (EOMT, {"size": {"height": 64, "width": 64}}, "cannot reproduce size"),
        (EOMT, {"size": {"shortest_edge": 32, "longest_edge": 32}}, r"inputs of \(32, 32\), image_size .* \(64, 64\)"),
    ],
)
def test_image_processing_that_the_server_cannot_do_is_named(broken, architecture, changes, message):
    folder = broken(architecture)
    edit(folder / "preprocessor_config.json", **changes)
    with pytest.raises(ExportError, match=message):
        load_huggingface(folder)


def test_masks_at_another_stride_are_refused(tmp_path):
    save(tmp_path, EOMT, model=build(EOMT, num_upscale_blocks=1))
    with pytest.raises(ExportError, match=r"masks of \(8, 8\) for an input of \(64, 64\); supported: stride 4"):
        load_huggingface(tmp_path)


def test_an_eomt_that_masks_at_random_is_refused(tmp_path):
    model = build(EOMT)
    model.attn_mask_probs[0] = 0.5
    save(tmp_path, EOMT, model=model)
    with pytest.raises(ExportError, match=r"attn_mask_probs is \[0.5, 1.0\]; supported: 0 and 1"):
        load_huggingface(tmp_path)
