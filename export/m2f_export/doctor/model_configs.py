"""Read a model repository as Triton does: folders, versions, configurations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from m2f_export.doctor import catalogue
from m2f_export.doctor.file_checks import check_content
from m2f_export.doctor.findings import Finding

DEFAULT = "config.pbtxt"


@dataclass(frozen=True)
class Model:
    """One model's folder.

    Attributes:
        folder: `<repository>/<name>`.
        configs: the configurations that parse, by file name within the folder: `config.pbtxt`, `configs/cpu.pbtxt`.
        version: the newest version's folder; None without any.
    """

    folder: Path
    configs: dict[str, Any] = field(default_factory=dict)
    version: Path | None = None

    @property
    def name(self) -> str:
        """The model's name, which is the folder's."""
        return self.folder.name

    @property
    def config(self) -> Any | None:
        """The default configuration; None if it is missing or does not parse."""
        return self.configs.get(DEFAULT)

    @property
    def is_engine(self) -> bool:
        """Whether this model runs the network: `mask2former_engine`, `mask2former_head_engine`."""
        return self.name.endswith("_engine")

    def parameters(self, config: str = DEFAULT) -> dict[str, str]:
        """Return the `parameters` block of a configuration."""
        return {key: value.string_value for key, value in self.configs[config].parameters.items()}


def read_repository(folder: Path) -> tuple[list[Finding], dict[str, Model]]:
    """Read every model of a repository.

    Returns:
        The findings (what does not parse is one), and the models by name.
    """
    findings: list[Finding] = []
    models = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and _is_model(path)):
        configs = {}
        for file in (path / DEFAULT, *sorted(path.glob("configs/*.pbtxt"))):
            if file.is_file():
                found, config = _read_config(file, path.name)
                findings += found
                if config is not None:
                    configs[str(file.relative_to(path))] = config
        if not (path / DEFAULT).is_file():
            findings.append(catalogue.CONFIG_MISSING(path, name=path.name))
        versions = sorted((p for p in path.iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name))
        models[path.name] = Model(path, configs, versions[-1] if versions else None)
    if not models:
        entry = catalogue.REPOSITORY_IS_MODEL if (folder / DEFAULT).is_file() else catalogue.REPOSITORY_EMPTY
        findings.append(entry(folder, parent=folder.parent))
    return findings, models


def _is_model(folder: Path) -> bool:
    return (folder / DEFAULT).is_file() or any(p.is_dir() and p.name.isdigit() for p in folder.iterdir())


def _read_config(file: Path, model: str) -> tuple[list[Finding], Any | None]:
    if found := check_content(file):
        return found, None
    try:
        config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as failure:
        return [catalogue.CONFIG_UNREADABLE(file, reason=failure)], None
    if config.name and config.name != model:
        return [catalogue.CONFIG_NAME(file, name=config.name, folder=model)], config
    return [], config


def dtype(tensor: Any) -> str:
    """Return a tensor's type without its prefix: `UINT8`, `FP32`, `STRING`."""
    return model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")


def dims_fit(ours: tuple[int, ...], theirs: tuple[int | None, ...]) -> bool:
    """Return whether two shapes can be equal; -1 and None are free."""
    return len(ours) == len(theirs) and all(
        a == b or a in (-1, None) or b in (-1, None) for a, b in zip(ours, theirs, strict=True)
    )
