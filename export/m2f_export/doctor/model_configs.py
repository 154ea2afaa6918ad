"""Read a model repository as Triton does: folders, versions, configurations."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from m2f_export.doctor import catalogue
from m2f_export.doctor.file_checks import check_content
from m2f_export.doctor.findings import Finding

DEFAULT = "config.pbtxt"
_VERSION = re.compile(r"\s*([+-]?[0-9]+)")
_LARGEST_VERSION = 2**63 - 1
_MAX_BYTES = 1 << 24  # of a config.pbtxt


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

    def parameters(self, config: str = DEFAULT) -> dict[str, str]:
        """Return the `parameters` block of a configuration."""
        return {key: value.string_value for key, value in self.configs[config].parameters.items()}


def read_repository(folder: Path) -> tuple[list[Finding], dict[str, Model]]:
    """Read every model of a repository.

    Returns:
        The findings (what does not parse is one), and the models by name.
    """
    findings, folders = _folders(folder)
    models = {}
    strays = []
    for path in folders:
        found, inner = _folders(path)
        if any(finding.code == catalogue.FILE_UNREADABLE.code for finding in found):
            findings += found
            continue
        if not _exists(path / DEFAULT) and not any(_number(p.name) is not None for p in inner):
            strays.append(path)
            continue
        findings += found
        model_findings, models[path.name] = _read_model(path, inner)
        findings += model_findings
    if models:
        findings += [catalogue.STRAY_FOLDER(path, name=path.name) for path in strays]
    else:
        findings.append(_no_models(folder, strays))
    return findings, models


def _folders(folder: Path) -> tuple[list[Finding], list[Path]]:
    """Return the folders in a folder, links followed as Triton does; a link that cannot be followed is a finding."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        return [catalogue.FILE_UNREADABLE(folder, reason=f"{folder} cannot be read: {error.strerror}")], []
    dangling = [path for path in paths if path.is_symlink() and not _exists(path)]
    findings = [catalogue.LINK_DANGLING(path, name=path.name, target=path.readlink()) for path in dangling]
    return findings, [path for path in paths if path not in dangling and path.is_dir()]


def _exists(path: Path) -> bool:
    """Return whether a path leads somewhere; a circle of links does not."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def _no_models(folder: Path, folders: list[Path]) -> Finding:
    if (folder / DEFAULT).is_file():
        return catalogue.REPOSITORY_IS_MODEL(folder, parent=folder.parent)
    if (folder / "config.json").is_file():
        return catalogue.REPOSITORY_IS_HUGGING_FACE(folder, folder=folder)
    below = [path for path in folders if any(path.glob(f"*/{DEFAULT}"))]
    return catalogue.REPOSITORY_BELOW(folder, below=below[0]) if below else catalogue.REPOSITORY_EMPTY(folder)


def _read_model(path: Path, folders: list[Path]) -> tuple[list[Finding], Model]:
    findings, configs = [], {}
    for file in (path / DEFAULT, *sorted(path.glob("configs/*.pbtxt"))):
        if _exists(file):
            found, config = _read_config(file, path.name)
            findings += found
            if config is not None:
                configs[str(file.relative_to(path))] = config
    if shlex.quote(path.name) != path.name and any(config.backend == "python" for config in configs.values()):
        findings.append(catalogue.MODEL_NAME(path, name=path.name))
    found, version = _newest_version(path, folders)
    return findings + found, Model(path, configs, version)


def _number(name: str) -> int | None:
    """Return the version that Triton takes a folder for: std::stoll reads the number that a name begins with."""
    if len(name) > 1 and name.startswith("0"):
        return None  # Triton ignores leading zeros
    found = _VERSION.match(name)
    return int(found[1]) if found else None


def _newest_version(model: Path, folders: list[Path]) -> tuple[list[Finding], Path | None]:
    findings: list[Finding] = []
    versions: dict[int, Path] = {}
    names = {path.name for path in folders}
    for path in folders:
        number, this = _number(path.name), {"name": path.name, "model": model.name}
        if number is None:
            continue
        if not -_LARGEST_VERSION <= number <= _LARGEST_VERSION:
            findings.append(catalogue.VERSION_TOO_LARGE(path, **this, largest=_LARGEST_VERSION))
        elif str(number) in names:
            versions[number] = model / str(number)
        else:
            findings.append(catalogue.VERSION_NAME(path, **this, number=number))
    return findings, versions[max(versions)] if versions else None


def _read_config(file: Path, model: str) -> tuple[list[Finding], Any | None]:
    if found := check_content(file):
        return found, None
    if file.stat().st_size > _MAX_BYTES:
        return [catalogue.CONFIG_UNREADABLE(file, reason=f"it is larger than {_MAX_BYTES} bytes")], None
    try:
        config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as failure:
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
