"""Read a configuration of detectron2: a YAML file with its bases, as the original Mask2Former and MaskFormer have it.

Reference: `CfgNode.load_yaml_with_base` of fvcore, and `_decode_cfg_value` of yacs. detectron2 runs the code that
`!!python/...` tags name. Here such a value is None, which no option allows that an export needs.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from m2f.errors import shown
from m2f_export.export_errors import ExportError, reason
from m2f_export.files import check_file
from m2f_export.sources.detectron2_options import MODEL
from m2f_export.sources.mmdet_options import Place, Table, read_options

_BASE = "_BASE_"
_MOST_BYTES = 1 << 20  # of a file; the longest official one has 2 kB
_MOST_VALUES = 100_000  # with aliases followed: a few lines of them can stand for billions
_LONGEST_LITERAL = 1000  # characters
_PYTHON = "tag:yaml.org,2002:python/"


@dataclass(frozen=True)
class Detectron2Config:
    """A configuration, merged with its bases, without detectron2's defaults.

    Attributes:
        file: the file that was read, for messages.
        values: what the file and its bases state.
    """

    file: Path
    values: Mapping[str, Any]

    def at(self, section: str) -> Place:
        """Return the place of a section, for messages."""
        return Place(self.file, section)

    def read(self, section: str, table: Table, *, whole: bool = True) -> dict[str, Any]:
        """Return the options of a section; an option that is not stated has its default of the table.

        Args:
            section: the section's key, such as `MODEL.MASK_FORMER`.
            table: the options that are understood.
            whole: refuse an option that is not in the table; False: ignore it.

        Raises:
            ExportError: the section is not a mapping, an option is unknown, or a value is not allowed.
        """
        stated: Any = self.values
        keys = section.split(".")
        for depth, key in enumerate(keys, start=1):
            stated = stated.get(key, {})
            if not isinstance(stated, Mapping):
                raise self.at(".".join(keys[:depth])).refusal(stated, "a mapping")
        if not whole:
            stated = {key: value for key, value in stated.items() if key in table}
        return read_options(stated, table, self.at(section))


def read_detectron2_config(file: Path) -> Detectron2Config:
    """Read a configuration of a `MaskFormer`, which is also the architecture of the original Mask2Former.

    Raises:
        ExportError: the file or a base is missing or is not YAML, or the model is of another architecture.
    """
    config = Detectron2Config(file, _with_bases(file, ()))
    model = config.values.get("MODEL", {})
    if isinstance(model, Mapping) and "META_ARCHITECTURE" not in model:
        raise ExportError(
            f"{file} has no MODEL.META_ARCHITECTURE; allowed: 'MaskFormer'. A base has none: give a configuration "
            f"whose {_BASE} it is"
        )
    config.read("MODEL", MODEL, whole=False)
    return config


def _with_bases(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return what a file states, merged into what its bases state.

    Args:
        file: the file.
        above: the files that lead to this one.
    """
    if file.resolve() in above:
        raise ExportError(f"{file}: its {_BASE} leads back to the file itself")
    stated = _read(file)
    bases = stated.pop(_BASE, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        _merge(_with_bases(_base_file(base, file), (*above, file.resolve())), merged)
    _merge(stated, merged)
    return merged


def _base_file(base: object, file: Path) -> Path:
    """Return the path of a base; it is relative to the file that states it."""
    if not isinstance(base, str):
        raise ExportError(f"{file}: {_BASE} is {shown(base)}; allowed: the path of a file")
    if "://" in base:
        raise ExportError(f"{file}: {_BASE} is {base}: m2f downloads nothing; download it, and state its path")
    path = file.parent / Path(base).expanduser()
    try:
        check_file(path)
    except ExportError as error:
        raise ExportError(f"{file}: {_BASE}: {error}") from error
    return path


def _merge(values: Mapping[str, Any], into: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(value, into[key])
        else:
            into[key] = value


# --- one file --------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Reads YAML without running code."""


_Loader.add_constructor(f"{_PYTHON}tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))
_Loader.add_multi_constructor(_PYTHON, lambda _loader, _suffix, _node: None)


def _read(file: Path) -> dict[str, Any]:
    check_file(file)
    if file.stat().st_size > _MOST_BYTES:
        raise ExportError(f"{file} is larger than a configuration can be: {_MOST_BYTES} bytes")
    try:
        stated = _Loader(file.read_bytes()).get_single_data()
        if sum(1 for _ in itertools.islice(_values(stated), _MOST_VALUES + 1)) > _MOST_VALUES:
            raise ExportError(f"{file} has more than {_MOST_VALUES} values, or aliases that make as many")
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise ExportError(f"{file} is not YAML: {reason(error)}") from error
    if not isinstance(stated, dict):
        raise ExportError(f"{file} is not a configuration: it holds {shown(stated)}; allowed: keys and their values")
    return {key: _decoded(value) for key, value in stated.items()}


def _values(value: Any) -> Iterator[Any]:
    """Yield a value and every value in it."""
    yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _values(each)


def _decoded(value: Any) -> Any:
    """Return a value as yacs reads it: a text that is a literal of Python is that literal, such as "(512, 512)"."""
    if isinstance(value, dict):
        return {key: _decoded(each) for key, each in value.items()}
    if isinstance(value, str) and len(value) <= _LONGEST_LITERAL:
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # a text
            return value
    return value
