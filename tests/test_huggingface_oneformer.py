"""OneFormer of Hugging Face: its task, its processor's rules, and its answers through Triton."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from clip_tokenizers import WORDS, write_tokenizer
from exports import m2f_export
from pictures import encode, photo
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from huggingface_models import MASK2FORMER, NAMES, ONEFORMER, build, load_huggingface, processor_for, save  # noqa: E402

from m2f_export.export_errors import ExportError  # noqa: E402
from m2f_export.sources.huggingface_oneformer import TASKS  # noqa: E402
from m2f_export.sources.huggingface_processor import read_preprocessing  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

THINGS = {"0": {"isthing": 1, "name": "cat"}, "1": {"isthing": 0, "name": "dog"}, "2": {"isthing": 1, "name": "bird"}}


@pytest.fixture(scope="module")
def model():
    """A model that is sure of its classes."""
    made = build(ONEFORMER)
    with torch.no_grad():
        made.model.transformer_module.decoder.class_embed.weight.mul_(8)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """A folder as it is on the Hub: with a tokenizer, and texts for the training."""
    folder = save(tmp_path_factory.mktemp("models") / "oneformer", ONEFORMER, model=model)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(whole, tmp_path / "oneformer")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("task", TASKS)
def test_the_task_is_what_transformers_own_processor_makes_of_it(folder, model, task):
    processor = transformers.OneFormerProcessor(
        image_processor=processor_for(ONEFORMER, repo_path=None),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder),
    )
    picture = Image.fromarray(photo(64, 96))
    inputs = processor(picture, [task], return_tensors="pt")
    source = load_huggingface(folder, task)
    assert source.kind == f"Hugging Face {ONEFORMER}, task {task}"
    np.testing.assert_array_equal(source.network.task, inputs["task_inputs"])
    with torch.inference_mode():
        theirs = model(pixel_values=inputs["pixel_values"], task_inputs=inputs["task_inputs"])
        classes, masks = source.network(inputs["pixel_values"])
    torch.testing.assert_close(classes, theirs.class_queries_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(masks, theirs.masks_queries_logits, rtol=0, atol=5e-5)


def test_tasks_give_different_answers(whole):
    """The ground of these tests: were the task idle, a wrong one would not be seen."""
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32))
    with torch.inference_mode():
        classes = [load_huggingface(whole, task).network(image)[0] for task in TASKS]
    assert float((classes[0] - classes[1]).abs().max()) > 1e-2
    assert float((classes[1] - classes[2]).abs().max()) > 1e-2


def test_a_folder_without_a_tokenizer_has_clips(whole, folder):
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    tasks = [load_huggingface(path, "instance").network.task for path in (whole, folder)]
    np.testing.assert_array_equal(*tasks)


def test_weights_and_settings_of_the_training_are_immaterial(folder, model):
    edit(folder / "config.json", is_training=True)
    edit(folder / "preprocessor_config.json", class_info_file="nowhere.json", repo_path="some/where", num_text=5)
    weights = model.state_dict() | {"model.text_mapper.prompt_ctx.weight": torch.zeros(2, 32)}
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert load_huggingface(folder, "semantic").facts.thing_classes is None


@pytest.mark.parametrize("size", [(64, 96), (30, 41), (100, 100), (257, 131), (131, 257), (37, 900)])
@pytest.mark.parametrize("processor", [{}, {"size": {"height": 64, "width": 96}}])
def test_inputs_are_the_processors_and_then_padded(tmp_path, size, processor):
    """transformers pads the images of a batch to the largest one; here to multiples of 32, as the original does."""
    made = processor_for(ONEFORMER, **processor)
    made.save_pretrained(tmp_path)
    preprocessing, picture = read_preprocessing(tmp_path), photo(*size)
    want = made([Image.fromarray(picture)], return_tensors="np")["pixel_values"][0]
    (pixels,), ((height, width),), _ = preprocessing([encode(picture)])
    got = ((pixels - np.array(preprocessing.mean)) / preprocessing.std).transpose(2, 0, 1)
    assert (height, width) == want.shape[1:]
    np.testing.assert_allclose(got[:, :height, :width], want, atol=1e-5)
    assert all(0 <= side - valid < 32 and side % 32 == 0 for side, valid in zip(pixels.shape, want.shape[1:]))  # noqa: B905
    padding = np.r_[got[:, height:].ravel(), got[:, :, width:].ravel()]
    assert (np.abs(padding) <= 0.5 / min(preprocessing.std) + 1e-9).all()


def test_a_fixed_input_takes_the_largest_size_that_fits(folder):
    preprocessing = read_preprocessing(folder)
    assert preprocessing.target_size(640, 480) == (85, 64)
    assert replace(preprocessing, input_size=(64, 64)).target_size(640, 480) == (64, 48)


def test_the_file_of_transformers_5_is_read(folder):
    path = folder / "preprocessor_config.json"
    want = read_preprocessing(folder)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(path.read_text())}))
    path.unlink()
    assert read_preprocessing(folder) == want
    (folder / "processor_config.json").write_text(json.dumps({"tokenizer": {}}))
    with pytest.raises(ExportError, match=r"processor_config\.json: image_processor is None; allowed: an object, or a"):
        read_preprocessing(folder)


CHANGES = {
    "another tokenizer": (lambda folder: write_tokenizer(folder, WORDS[1:]), r'makes \[49406, 518, .*"the task'),
    "half a tokenizer": (lambda folder: (folder / "merges.txt").write_text("#version"), "tokenizer makes "),
    "an empty file": (lambda folder: (folder / "vocab.json").write_text(""), r"vocab\.json is empty"),
    "no tokenizer": (lambda folder: (folder / "vocab.json").write_text("[1, 2]"), "its tokenizer cannot be loaded"),
    "dinat": (
        lambda folder: edit(folder / "config.json", backbone_config={"model_type": "dinat"}),
        "the backbone dinat is not supported: its neighbourhood attention",
    ),
    "size": (
        lambda folder: edit(folder / "preprocessor_config.json", size={"height": 60, "width": 64}),
        r"size .*'height': 60.* \(inputs are multiples of 32\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_what_cannot_be_served_is_named(folder, case):
    change, message = CHANGES[case]
    change(folder)
    with pytest.raises(ExportError, match=message):
        load_huggingface(folder, "instance")


def test_a_model_without_room_for_the_task_is_refused(tmp_path):
    folder = save(tmp_path, ONEFORMER, model=build(ONEFORMER, task_seq_len=3))
    with pytest.raises(ExportError, match=r"task_seq_len is 3; allowed: a whole number >= 6"):
        load_huggingface(folder, "instance")


def test_the_task_must_be_given_and_only_for_oneformer(whole, tmp_path):
    with pytest.raises(ExportError, match=r"is a OneFormer, .*: --task instance or panoptic or semantic"):
        load_huggingface(whole)
    other = save(tmp_path / "other", MASK2FORMER)
    with pytest.raises(ExportError, match=f"--task is for OneFormer; .*other is {MASK2FORMER}: leave it out"):
        load_huggingface(other, "instance")
    result = m2f_export(whole, "--task", "boxes", "--onnx", tmp_path / "model.onnx")
    assert result.exit_code == 2
    assert "'boxes' is not one of 'instance', 'panoptic', 'semantic'" in result.stderr


def test_things_are_read_from_the_processor(folder):
    (folder / "ade20k_panoptic.json").write_text(json.dumps(THINGS))
    edit(folder / "preprocessor_config.json", class_info_file="ade20k_panoptic.json")
    assert load_huggingface(folder, "panoptic").facts.thing_classes == {0, 2}
    edit(folder / "preprocessor_config.json", metadata={"thing_ids": [1]})
    assert load_huggingface(folder, "panoptic").facts.thing_classes == {1}


@pytest.mark.official
def test_it_is_served_through_triton_as_transformers_answers(folder, tmp_path, model):
    from m2f_client import Client
    from m2f_server import serve

    (folder / "classes.json").write_text(json.dumps(THINGS))
    edit(folder / "preprocessor_config.json", class_info_file="classes.json")
    result = m2f_export(folder, "--task", "panoptic", "--repository", tmp_path / "mine", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["class_names"], report["thing_classes"]) == (NAMES, [0, 2])
    picture = photo(64, 96)  # no padding
    processor = processor_for(ONEFORMER)
    inputs = processor([Image.fromarray(picture)], ["panoptic"], return_tensors="pt")
    with torch.inference_mode():
        task = load_huggingface(folder, "panoptic").network.task
        theirs = model(pixel_values=inputs["pixel_values"], task_inputs=task)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        serve(model_repository=tmp_path / "mine", config_name="cpu", **ports) as server,
        Client(f"grpc://{server.grpc_url}") as client,
    ):
        outputs = ["cls_logits", "mask_logits", "panoptic", "segments", "semantic"]
        changes = {"panoptic_score_threshold": 0.3, "panoptic_semantics": "huggingface_maskformer"}
        got = client.predict(encode(picture), outputs=outputs, **changes)
    np.testing.assert_allclose(got.cls_logits, theirs.class_queries_logits[0], atol=1e-4)
    np.testing.assert_allclose(got.mask_logits, theirs.masks_queries_logits[0], atol=1e-4)
    (semantic,) = processor.post_process_semantic_segmentation(theirs, target_sizes=[(64, 96)])
    assert (got.semantic == semantic.numpy()).mean() > 0.97  # theirs resizes scores, ours logits
    # OneFormer's own needs torchvision to resize; MaskFormer's, which it was adapted from, does not
    (panoptic,) = transformers.MaskFormerImageProcessorPil().post_process_panoptic_segmentation(
        theirs, threshold=0.3, label_ids_to_fuse={1}, target_sizes=[(64, 96)]
    )
    classes = {segment["id"]: segment["category_id"] for segment in got.segments} | {0: -1}
    theirs_by_id = {segment["id"]: segment["label_id"] for segment in panoptic["segments_info"]} | {0: -1}
    assert len(got.segments)
    np.testing.assert_array_equal(
        np.vectorize(classes.get)(got.panoptic), np.vectorize(theirs_by_id.get)(panoptic["segmentation"])
    )
    assert report["source"] == f"Hugging Face {ONEFORMER}, task panoptic"
