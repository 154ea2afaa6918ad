"""Write a model repository: a copy of `model_repository/` with the parameters of the exported model.

The copy is built beside its place and moved there when everything has been checked.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2f.preprocess import Preprocessing
from m2f.settings import PANOPTIC_KEYS, SEMANTIC_KEYS, Settings
from m2f_export.export_errors import ExportError

if TYPE_CHECKING:  # it needs torch, which a server without the exporter does not have
    from m2f_export.sources.base import Source

HERE = Path(__file__).parent
REPORT = "export.json"  # Triton looks at folders only
ENGINE = "mask2former_engine"
HEAD_ENGINE = "mask2former_head_engine"

_FULL_MASKS, _MASK_LOGITS = (f'{{ name: "masks" data_type: {kind}' for kind in ("TYPE_UINT8", "TYPE_FP32"))
_NO_LIMIT = 4  # longer edge / shorter edge
_INPUT = re.compile(r'(\{ name: "input" data_type: )TYPE_\w+ dims: \[[^\]]*\]')
_WARM_UP = re.compile(r'(key: "input" value \{ data_type: )TYPE_\w+ dims: \[[^\]]*\]')


def template() -> Path:
    """Return the repository that exports are copied from: the checkout's, else the installed package's."""
    checkout = HERE.parents[1] / "model_repository"
    return checkout if checkout.is_dir() else HERE / "model_repository"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it replaces `target` if the block ends without an exception.

    Raises:
        ExportError: `target` exists and is not an export, its folder cannot be written to, or the disk is full.
    """
    target = Path(os.path.realpath(target))  # a link stays, and what it points to is replaced
    if target.exists() and not (target / REPORT).is_file():
        raise ExportError(
            f"{target} exists and was not made by m2f export: it is not replaced; give another --repository"
        )
    stage = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        stage.mkdir(parents=True)
        yield stage
        _put_in_place(stage, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ExportError(f"no space left in {target.parent}; {_kept(target)}") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ExportError(f"{target.parent} cannot be written to: {error.strerror}") from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _kept(target: Path) -> str:
    return f"{target} is as it was" if target.exists() else "nothing was written"


def _put_in_place(stage: Path, target: Path) -> None:
    for cache in list(stage.rglob("__pycache__")):  # of the server that tried it
        shutil.rmtree(cache)
    if not target.exists():
        stage.rename(target)
        return
    old = stage.with_name(stage.name + ".old")
    target.rename(old)
    try:
        stage.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def copy_template(stage: Path) -> Path:
    """Copy the template's configurations and code, without its model.

    Returns:
        The folder that the engine's files go to.
    """
    ignore = shutil.ignore_patterns("*.onnx", "*.plan", "__pycache__")
    shutil.copytree(template(), stage, ignore=ignore, dirs_exist_ok=True)
    return stage / ENGINE / "1"


def copy_head(stage: Path, *, masks: str) -> None:
    """Add the models that serve a graph with its head.

    Args:
        stage: the repository.
        masks: the graph's masks, `full` or `stride4`.
    """
    models = HERE / "head_repository"
    shutil.copytree(models, stage, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    if masks == "stride4":
        for path in models.rglob("*.pbtxt"):
            copy = stage / path.relative_to(models)
            copy.write_text(copy.read_text().replace(_FULL_MASKS, _MASK_LOGITS))


def configure(stage: Path, source: Source) -> None:
    """Write the parameters of a model into the configurations that use them."""
    preprocessing = source.preprocessing
    _edit(stage / "mask2former_preprocess" / "config.pbtxt", preprocessing_parameters(preprocessing))
    for model, parameters in step_parameters(source).items():
        _edit(stage / model / "config.pbtxt", parameters)
    for path in (*stage.glob("*/config.pbtxt"), *stage.glob("*/configs/*.pbtxt")):
        path.write_text(_set_input(path.read_text(), preprocessing))


def step_parameters(source: Source) -> dict[str, dict[str, str | None]]:
    """Return the parameters of each step that reads the logits; None for parameters to remove."""
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
        "mask2former_postprocess": {**settings, **classes, **stride},
        "mask2former_panoptic": {**panoptic, **background, **classes, **stride},
        "mask2former_semantic": {**semantic, **background, **stride},
    }


def preprocessing_parameters(preprocessing: Preprocessing) -> dict[str, str | None]:
    """Return the parameters of `mask2former_preprocess`; None for parameters at their default, which are removed."""
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
        sides = (*size, 3) if preprocessing.layout == "uint8_hwc" else (3, *size)
        kind = "TYPE_UINT8" if preprocessing.layout == "uint8_hwc" else "TYPE_FP32"
        return rf"\g<1>{kind} dims: [ {', '.join(map(str, sides))} ]"

    text = _INPUT.sub(stated(preprocessing.input_size or (-1, -1)), text)
    return _WARM_UP.sub(stated(warm_up_size(preprocessing)), text)


def warm_up_size(preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the engine's fixed height and width, else those of a usual landscape image at full size."""
    if preprocessing.input_size:
        return preprocessing.input_size
    longer, shorter = max(preprocessing.scale), min(preprocessing.scale)
    if longer > _NO_LIMIT * shorter:  # the longer edge is not meant to limit anything
        longer = 2 * shorter
    divisor = preprocessing.pad_divisor
    return -(-shorter // divisor) * divisor, -(-longer // divisor) * divisor


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
