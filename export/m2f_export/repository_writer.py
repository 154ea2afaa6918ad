"""Write the models of an export: a copy of `model_repository/` with its name and its parameters."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2f.contract import HEAD_ENGINE, PUBLIC_MODEL, model_name
from m2f.preprocess import Preprocessing
from m2f.settings import PANOPTIC_KEYS, SEMANTIC_KEYS, Settings
from m2f.size_steps import round_up
from m2f_backend.engine import LARGE
from m2f_export.export_errors import ExportError

if TYPE_CHECKING:  # it needs torch, which a server without the exporter does not have
    from m2f_export.sources.base import Source

HERE = Path(__file__).parent
LABELS = "labels.txt"  # in the public ensemble's folder: a class name a line
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_LONGEST_NAME = 100

_FULL_MASKS, _MASK_LOGITS = (f'{{ name: "masks" data_type: {kind}' for kind in ("TYPE_UINT8", "TYPE_FP32"))
_PREFIX_OF_LOGITS = {"engine": "", "postprocess": "", "panoptic": "", "semantic": "", "raw": "inner_"}  # by step
_NO_LIMIT = 4  # longer edge / shorter edge
_USUAL = 1333, 800  # edges of an image that is not resized
_INPUT = re.compile(r'(\{ name: "input" data_type: )TYPE_\w+ dims: \[[^\]]*\]')
_INSTANCES = re.compile(r"(instance_group \[ \{ kind: KIND_CPU count: )\d+")
_WARM_UP = re.compile(r'(key: "input" value \{ data_type: )TYPE_\w+ dims: \[[^\]]*\]')


def template() -> Path:
    """Return the repository that exports are copied from: the checkout's, else the installed package's."""
    checkout = HERE.parents[1] / "model_repository"
    return checkout if checkout.is_dir() else HERE / "model_repository"


def check_name(name: str) -> None:
    """Check the name of an export: it becomes part of folders, addresses and labels of metrics.

    Raises:
        ExportError: the name has other characters, or is too long.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ExportError(
            f"{name!r} is no name for an export: a letter, then letters, digits, '_', '-' and '.'; at most "
            f"{_LONGEST_NAME} characters"
        )


def copy_template(stage: Path, name: str) -> Path:
    """Copy the template's configurations and code under a name, without its model.

    Returns:
        The folder that the engine's files go to.
    """
    _copy(template(), stage, name)
    return stage / model_name(name, "engine") / "1"


def copy_head(stage: Path, name: str, *, masks: str) -> Path:
    """Add the models that serve a graph with its head.

    Args:
        stage: the repository.
        name: name of the export.
        masks: the graph's masks, `full` or `stride4`.

    Returns:
        The folder that the graph with its head goes to.
    """
    copies = _copy(HERE / "head_repository", stage, name)
    if masks == "stride4":
        for config in (path for copy in copies for path in copy.rglob("*.pbtxt")):
            config.write_text(config.read_text().replace(_FULL_MASKS, _MASK_LOGITS))
    return stage / model_name(name, HEAD_ENGINE) / "1"


def _copy(models: Path, stage: Path, name: str) -> list[Path]:
    """Copy models of the default name under another name, and return the copies."""
    ignore = shutil.ignore_patterns("*.onnx", "*.plan", "__pycache__", LABELS)
    copies = []
    for model in sorted(path.parent for path in models.glob("*/config.pbtxt")):
        copy = stage / model.name.replace(PUBLIC_MODEL, name, 1)
        shutil.copytree(model, copy, ignore=ignore)
        for config in copy.rglob("*.pbtxt"):
            config.write_text(config.read_text().replace(PUBLIC_MODEL, name))
        copies.append(copy)
    return copies


def configure(stage: Path, name: str, source: Source) -> None:
    """Write what is specific to a model: the parameters of its steps, the size of its input, its class names."""
    preprocessing = source.preprocessing
    parameters_of = {"preprocess": preprocessing_parameters(preprocessing), **step_parameters(source)}
    for step, parameters in parameters_of.items():
        _edit(stage / model_name(name, step) / "config.pbtxt", parameters)
    if names := source.facts.class_names:
        lines = (" ".join(str(one).split()) for one in names)  # a name with a line break would take two lines
        (stage / name / LABELS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for path in (*stage.glob("*/config.pbtxt"), *stage.glob("*/configs/*.pbtxt")):
        path.write_text(_set_input(path.read_text(), preprocessing))


def step_parameters(source: Source) -> dict[str, dict[str, str | None]]:
    """Return the parameters of each step of `contract.STEPS` that reads the logits; None for parameters to remove."""
    settings = {field.name: _value(getattr(source.settings, field.name)) or None for field in fields(Settings)}
    background = {"background_label_id": settings["background_label_id"]}
    facts, things = source.facts, source.facts.thing_classes
    stride = {"mask_stride": str(facts.mask_stride)}
    classes = {
        "class_names": json.dumps(facts.class_names),
        "thing_classes": None if things is None else json.dumps(sorted(things)),
    }
    panoptic, semantic = ({key: settings.pop(key) for key in keys} for keys in (PANOPTIC_KEYS, SEMANTIC_KEYS))
    return {
        "postprocess": {**settings, **classes, **stride},
        "panoptic": {**panoptic, **background, **classes, **stride},
        "semantic": {**semantic, **background, **stride},
    }


def preprocessing_parameters(preprocessing: Preprocessing) -> dict[str, str | None]:
    """Return the parameters of the step `preprocess`; None for parameters at their default, which are removed."""
    defaults = {field.name: field.default for field in fields(Preprocessing)}
    values = {name: getattr(preprocessing, name) for name in defaults}
    return {
        name: _value(value) if name in ("scale", "max_pixels", "max_bytes") or value != defaults[name] else None
        for name, value in values.items()
    }


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _set_input(text: str, preprocessing: Preprocessing) -> str:
    """Set the engine's input: type, layout and fixed size everywhere, and the size of the warm-up.

    A fixed size is stated, because Triton up to 26.03 hands shapes whose product wraps to the engine's process, which
    ends. Stated sides are compared one by one.
    """

    def stated(size: tuple[int, int]) -> str:
        channels = preprocessing.channels
        sides = (*size, channels) if preprocessing.layout == "uint8_hwc" else (channels, *size)
        kind = "TYPE_UINT8" if preprocessing.layout == "uint8_hwc" else "TYPE_FP32"
        return rf"\g<1>{kind} dims: [ {', '.join(map(str, sides))} ]"

    text = _INPUT.sub(stated(preprocessing.input_size or (-1, -1)), text)
    return _WARM_UP.sub(stated(warm_up_size(preprocessing)), text)


def set_logits_types(stage: Path, name: str, types: Mapping[str, str]) -> None:
    """State the types of the logits that the engine makes and the steps read; the outputs of `raw` stay FP32.

    Args:
        stage: the repository.
        name: name of the export.
        types: `FP32` or `FP16` by name of the logits.
    """
    for step, prefix in _PREFIX_OF_LOGITS.items():
        for path in (stage / model_name(name, step)).rglob("*.pbtxt"):
            text = path.read_text()
            for tensor, kind in types.items():
                text = re.sub(rf'(\{{ name: "{prefix}{tensor}" data_type: )TYPE_\w+', rf"\g<1>TYPE_{kind}", text)
            path.write_text(text)


def set_instances(stage: Path, name: str, graph: Path) -> None:
    """Give the engine on a processor one instance if its graph is large: a second one would take its memory again.

    Args:
        stage: the repository.
        name: name of the export.
        graph: the ONNX file.
    """
    path = stage / model_name(name, "engine") / "configs/cpu.pbtxt"
    if graph.stat().st_size >= LARGE:
        path.write_text(_INSTANCES.sub(r"\g<1>1", path.read_text()))


def warm_up_size(preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the engine's fixed height and width, else those of a usual landscape image at full size."""
    if preprocessing.input_size:
        return preprocessing.input_size
    longer, shorter = max(preprocessing.scale or _USUAL), min(preprocessing.scale or _USUAL)
    if longer > _NO_LIMIT * shorter:  # the longer edge is not meant to limit anything
        longer = 2 * shorter
    return round_up(*preprocessing.target_size(shorter, longer), preprocessing.pad_divisor)


def _edit(path: Path, parameters: Mapping[str, str | None]) -> None:
    text = path.read_text()
    for key, value in parameters.items():
        text = set_parameter(text, key, value)
    path.write_text(text)


def set_parameter(config: str, key: str, value: str | None) -> str:
    """Set a parameter in the text of a `config.pbtxt`; `value` None removes it.

    Comments stay, except directly above a removed parameter.
    """
    line = rf'parameters {{ key: "{re.escape(key)}" value {{ string_value: "(?:[^"\\]|\\.)*" }} }}\n'
    if value is None:
        return re.sub(rf"(?:^\n)?(?:^#[^\n]*\n)*^{line}", "", config, flags=re.MULTILINE)
    # JSON's quoting of a string is also the text format's
    written = f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}\n'
    changed, count = re.subn(line, lambda _: written, config)
    return changed if count else f"{config.rstrip()}\n\n{written}"
