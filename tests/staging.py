"""Exports without a network: the files of each model, put in place as an export puts its own.

Run as `python staging.py put|put_embedded TARGET NAME`, it puts one after the other there until it is killed.
"""

import json
import shutil
import sys
from pathlib import Path

from m2f.contract import models_of
from m2f_export.repository_place import REPORT, staged
from m2f_export.repository_writer import copy_template, set_parameter, template

FILES = 3  # of each model, besides its configuration


def fill(stage, name, content, *, head=False):
    """Write the models of an export; every file holds its content."""
    models = models_of(name, head=head)
    for model in models:
        (stage / model / "1").mkdir(parents=True)
        (stage / model / "config.pbtxt").write_text(content)
        for number in range(FILES):
            (stage / model / "1" / f"{number}.bin").write_text(content)
    (stage / name / REPORT).write_text(json.dumps({"name": name, "models": models, "content": content}))


def put(target, name="mask2former", content="1", *, head=False):
    """Put an export into a repository."""
    with staged(Path(target), models_of(name, head=head)) as stage:
        fill(stage, name, content, head=head)


def put_embedded(target, name="mask2former", content="0.5"):
    """Put the embedded model into a repository, with this score threshold."""
    with staged(Path(target), models_of(name, head=False)) as stage:
        graph = copy_template(stage, name) / "model.onnx"
        shutil.copy(template() / "mask2former_engine/1/model.onnx", graph)
        config = stage / f"{name}_postprocess/config.pbtxt"
        config.write_text(set_parameter(config.read_text(), "score_threshold", content))
        shutil.copy(template() / "mask2former/labels.txt", stage / name)
        (stage / name / REPORT).write_text(json.dumps({"name": name, "models": models_of(name, head=False)}))


def contents(target):
    """The content of each file, by its path within a folder."""
    files = (path for path in Path(target).rglob("*") if path.is_file())
    return {str(path.relative_to(target)): path.read_bytes().decode("latin-1") for path in files}


if __name__ == "__main__":
    kind, target, name = sys.argv[1:]
    for number in range(1_000_000):
        (put_embedded if kind == "put_embedded" else put)(target, name, f"0.5{number}")
        print(number, flush=True)
