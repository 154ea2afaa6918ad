"""Which classes of a Hugging Face model are stuff: what its folder says, and `--stuff`."""

import json
import re

import pytest
from exports import m2f_export

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from huggingface_models import MASK2FORMER, build, load_huggingface, save  # noqa: E402

from m2f_export.export_errors import ExportError  # noqa: E402
from m2f_export.sources.huggingface_things import read_things  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

NAMES = {0: "cat", 1: "sky, grey", 2: "2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = build(MASK2FORMER, id2label=NAMES, label2id=None)
    return save(tmp_path_factory.mktemp("models") / "mask2former", model=model)


@pytest.fixture
def edit(folder):
    """Change a file of the folder; it is as it was after the test."""
    before = {path: path.read_text() for path in folder.glob("*.json")}

    def changed(name, **changes):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    yield changed
    for path, text in before.items():
        path.write_text(text)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "config.json"])
def test_classes_to_fuse_are_stuff(folder, edit, name):
    assert load_huggingface(folder).facts.thing_classes is None
    edit(name, label_ids_to_fuse=[1])
    assert load_huggingface(folder).facts.thing_classes == {0, 2}


def read(tmp_path, config=(), processor=(), count=3):
    path = tmp_path / "preprocessor_config.json"
    return read_things(tmp_path, dict(config), dict(processor), path, count=count)


def test_the_processor_counts_before_the_configuration(tmp_path):
    fused, others = {"label_ids_to_fuse": [0]}, {"label_ids_to_fuse": [1, 2]}
    assert read(tmp_path, others, fused) == {1, 2}
    assert read(tmp_path, others, fused | {"metadata": {"thing_ids": [1]}}) == {1, 2}
    assert read(tmp_path, {}, {"label_ids_to_fuse": []}) == {0, 1, 2}


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (
            {"label_ids_to_fuse": [3]},
            r"_config\.json: label_ids_to_fuse is \[3\]; allowed: a list of labels from 0 to 2",
        ),
        ({"label_ids_to_fuse": "sky"}, r"label_ids_to_fuse is 'sky'; allowed"),
        ({"label_ids_to_fuse": [True]}, r"label_ids_to_fuse is \[True\]; allowed"),
        ({"metadata": {"thing_ids": ["a"]}}, r"metadata\.thing_ids is \['a'\]; allowed: a list of labels from 0 to 2"),
        ({"class_info_file": "classes.json"}, r"classes\.json: class 'x'; allowed: the labels 0 to 2"),
        ({"class_info_file": "odd.json"}, r"odd\.json: class 1 is \{'name': 'x'\}; allowed: an object with isthing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, processor, message):
    (tmp_path / "classes.json").write_text('{"x": {"isthing": 1}}')
    (tmp_path / "odd.json").write_text('{"1": {"name": "x"}}')
    with pytest.raises(ExportError, match=message):
        read(tmp_path, processor=processor)


def test_a_file_outside_the_folder_is_not_read(tmp_path):
    (tmp_path / "classes.json").write_text('{"x": {}}')
    inside = tmp_path / "model"
    inside.mkdir()
    for name in ("../classes.json", str(tmp_path / "classes.json"), "nowhere.json", 7):
        assert read(inside, processor={"class_info_file": name}) is None


def test_an_unknown_class_is_named(folder, tmp_path):
    result = m2f_export(folder, "--stuff", "tree", "--onnx", tmp_path / "model.onnx")
    assert result.exit_code == 1
    assert re.search(r"Error: parameter '--stuff' has no class 'tree'; allowed: 0 to 2; names: cat, ", result.stderr)
