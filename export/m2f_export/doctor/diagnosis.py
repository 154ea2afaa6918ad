"""Say what a path is, and let the checks for it speak."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from m2f_export.doctor.deploy_checks import check_deploy_config, compare_with_onnx
from m2f_export.doctor.findings import LEVELS, Finding, error, note
from m2f_export.doctor.onnx_checks import check_onnx
from m2f_export.doctor.plan_checks import check_plan
from m2f_export.doctor.repository_checks import check_repository
from m2f_export.export_errors import ExportError

KINDS = {".py": "deploy config", ".json": "deploy config", ".onnx": "ONNX", ".plan": "plan", ".engine": "plan"}
CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors", ".bin")


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `m2f doctor` found.

    Attributes:
        path: what was looked at.
        kind: what it is.
        findings: errors first, in the order of the checks.
    """

    path: Path
    kind: str
    findings: tuple[Finding, ...]

    def count(self, level: str) -> int:
        """Return how many findings have a level."""
        return sum(finding.level == level for finding in self.findings)


def kind_of(path: Path) -> str:
    """Return what a path is, by its name.

    Raises:
        ExportError: there is nothing, or nothing that doctor reads.
    """
    if path.is_dir():
        return "repository"
    if not path.is_file():
        raise ExportError(f"{path}: no such file or folder")
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
    deploy_config: Path | None = None,
    tensorrt_version: str | None = None,
    server_version: str | None = None,
) -> Diagnosis:
    """Check a deploy config, an ONNX, a TensorRT plan or a model repository.

    Args:
        path: the file, or the repository's folder.
        deploy_config: to hold an ONNX or a repository against.
        tensorrt_version: of the server, for a plan: `X.Y` or longer; None: the installed one's.
        server_version: of Triton or its container, for a repository; None: of the one found here.

    Raises:
        ExportError: there is nothing at the path, nothing that doctor reads, or an option that does not fit it.
    """
    kind = kind_of(path)
    if deploy_config is not None and kind not in ("ONNX", "repository"):
        raise ExportError(f"{path}: only an ONNX or a repository is held against a deploy config, not a {kind}")
    if tensorrt_version is not None and not re.fullmatch(r"\d+(\.\d+){1,3}", tensorrt_version):
        raise ExportError(f"{tensorrt_version!r} is no version of TensorRT, such as 10.3 or 10.3.0.26")
    findings: list[Finding] = []
    config = None
    if deploy_config is not None:
        findings, config = check_deploy_config(deploy_config)
    if kind == "deploy config":
        findings += _deploy_config(path)
    elif kind == "plan":
        findings += check_plan(path, tensorrt_version=tensorrt_version)
    elif kind == "ONNX":
        found, graph = check_onnx(path)
        findings += found
        if config is not None and deploy_config is not None and graph is not None:
            findings += compare_with_onnx(deploy_config, config, graph)
    else:
        deploy = (deploy_config, config) if deploy_config is not None and config is not None else None
        findings += check_repository(
            path, tensorrt_version=tensorrt_version, server_version=server_version, deploy=deploy
        )
    return Diagnosis(path=path, kind=kind, findings=tuple(sorted(findings, key=lambda f: LEVELS.index(f.level))))


def _deploy_config(path: Path) -> list[Finding]:
    """Check a deploy config, against the ONNX beside it where that is the one it names."""
    findings, config = check_deploy_config(path)
    if config is None:
        return findings
    onnx_path = path.with_name(config.save_file or "end2end.onnx")
    if not onnx_path.is_file():
        what, why = f"{onnx_path.name} is not beside it", "so its names were not held against the model's"
        fix = f"m2f doctor {onnx_path.name} --deploy-config {path}"
        return [*findings, note("onnx-not-beside", path, what, why=why, fix=fix)]
    found, graph = check_onnx(onnx_path)
    if graph is None:
        what, why = f"{onnx_path.name} beside it cannot be read: {found[0].what}", found[0].why
        return [*findings, error(found[0].code, onnx_path, what, why=why, fix=found[0].fix)]
    return [*findings, *compare_with_onnx(path, config, graph)]
