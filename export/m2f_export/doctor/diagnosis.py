"""Find out what a path is, and run the checks for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from m2f_export.doctor import catalogue
from m2f_export.doctor.deploy_checks import check_deploy_config, compare_with_onnx
from m2f_export.doctor.findings import LEVELS, Finding
from m2f_export.doctor.onnx_checks import check_onnx
from m2f_export.doctor.plan_checks import check_plan
from m2f_export.doctor.repository_checks import check_repository
from m2f_export.export_errors import ExportError
from m2f_export.files import read_head
from m2f_export.sources.recognise import CHECKPOINTS

KINDS = {".py": "deploy config", ".json": "deploy config", ".onnx": "ONNX", ".plan": "plan", ".engine": "plan"}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `m2f doctor` found.

    Attributes:
        path: the file or folder that was checked.
        kind: `deploy config`, `ONNX`, `plan` or `repository`.
        findings: errors first, then warnings, then notes, each in the order of the checks.
    """

    path: Path
    kind: str
    findings: tuple[Finding, ...]

    def count(self, level: str) -> int:
        """Return how many findings have a level."""
        return sum(finding.level == level for finding in self.findings)


def kind_of(path: Path) -> str:
    """Return the kind of a path, by its name.

    Raises:
        ExportError: there is no such path, or doctor does not read its kind.
    """
    if path.is_dir():
        return "repository"
    read_head(path)
    if path.suffix in CHECKPOINTS:
        raise ExportError(f"{path}: doctor does not read checkpoints; m2f export checks one when it loads it")
    if path.suffix not in KINDS:
        raise ExportError(
            f"{path}: doctor reads a deploy config (.py, .json), an ONNX (.onnx), a TensorRT plan (.plan, .engine) "
            "or the folder of a model repository"
        )
    return KINDS[path.suffix]


def diagnose(
    path: Path,
    *,
    model: str | None = None,
    deploy_config: Path | None = None,
    tensorrt_version: str | None = None,
    server_version: str | None = None,
) -> Diagnosis:
    """Check a deploy config, an ONNX, a TensorRT plan or a model repository.

    Args:
        path: the file, or the repository's folder.
        model: ensemble of the only export to check, for a repository; None: every export.
        deploy_config: a deploy config to compare an ONNX or a repository with.
        tensorrt_version: the server's TensorRT, for a plan: `X.Y` or longer; None: the installed version.
        server_version: Triton's version or its container's, for a repository; None: of the server found here.

    Raises:
        ExportError: there is no such path, doctor does not read its kind, or an option does not fit it.
    """
    kind = kind_of(path)
    if model is not None and kind != "repository":
        raise ExportError(f"{path}: a model is chosen in a repository, not in a {kind}")
    if deploy_config is not None and kind not in ("ONNX", "repository"):
        raise ExportError(f"{path}: only an ONNX or a repository is compared with a deploy config, not a {kind}")
    if tensorrt_version is not None and not re.fullmatch(r"\d+(\.\d+){1,3}", tensorrt_version):
        raise ExportError(f"{tensorrt_version!r} is no version of TensorRT, such as 10.3 or 10.3.0.26")
    findings: list[Finding] = []
    deploy = None
    if deploy_config is not None:
        findings, config = check_deploy_config(deploy_config)
        deploy = (deploy_config, config) if config is not None else None
    if kind == "deploy config":
        findings += _deploy_config(path)
    elif kind == "plan":
        findings += check_plan(path, tensorrt_version=tensorrt_version)
    elif kind == "ONNX":
        found, graph = check_onnx(path)
        findings += found
        findings += compare_with_onnx(*deploy, graph) if deploy is not None and graph is not None else []
    else:
        findings += check_repository(
            path, model=model, tensorrt_version=tensorrt_version, server_version=server_version, deploy=deploy
        )
    return Diagnosis(path=path, kind=kind, findings=tuple(sorted(findings, key=lambda f: LEVELS.index(f.level))))


def _deploy_config(path: Path) -> list[Finding]:
    """Check a deploy config, and compare it with the ONNX beside it that it names."""
    findings, config = check_deploy_config(path)
    if config is None:
        return findings
    onnx_path = path.with_name(config.save_file or "end2end.onnx")
    if not onnx_path.is_file():
        return [*findings, catalogue.ONNX_NOT_BESIDE(path, onnx=onnx_path.name, path=path)]
    found, graph = check_onnx(onnx_path)
    if graph is None:
        what = f"{onnx_path.name}, in the same folder, cannot be read: {found[0].what}"
        return [*findings, replace(found[0], what=what)]
    return [*findings, *compare_with_onnx(path, config, graph)]
