"""`m2f doctor`: report what is wrong with a file or a repository."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

import click

from m2f_client.printable import printable
from m2f_export.doctor.diagnosis import Diagnosis, diagnose
from m2f_export.doctor.findings import LEVELS, Finding
from m2f_export.export_errors import ExportError

_COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}


@click.command(epilog="Exit codes: 0 no error (warnings are allowed); 1 at least one error; 2 wrong usage.")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--model", metavar="NAME", help="Check only the export of this name in a repository.  [default: all]")
@click.option(
    "--deploy-config", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Compare the ONNX or the repository with this deploy config.",
)  # fmt: skip
@click.option(
    "--tensorrt-version", metavar="X.Y", help="TensorRT version of the server. Default: the installed version."
)
@click.option(
    "--server-version", metavar="X.Y", help="Version of Triton or its container. Default: the server found here."
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(
    *,
    path: Path,
    model: str | None,
    deploy_config: Path | None,
    tensorrt_version: str | None,
    server_version: str | None,
    as_json: bool,
) -> None:
    """Report what is wrong with PATH before a server does.

    PATH is a deploy config (.py, .json), an ONNX (.onnx), a TensorRT plan (.plan, .engine) or the folder of a model
    repository. Each finding says what is wrong, why it matters and how to fix it. A .py config is executed, as MMDeploy
    does: check only files you trust.
    """
    try:
        diagnosis = diagnose(
            path,
            model=model,
            deploy_config=deploy_config,
            tensorrt_version=tensorrt_version,
            server_version=server_version,
        )
    except ExportError as error:
        raise click.UsageError(printable(str(error))) from error
    except OSError as error:  # no permission to read
        raise click.ClickException(printable(str(error))) from error
    click.echo(_as_json(diagnosis) if as_json else _as_text(diagnosis))
    sys.exit(1 if diagnosis.count("error") else 0)


def _as_json(diagnosis: Diagnosis) -> str:
    content = {
        "path": str(diagnosis.path),
        "kind": diagnosis.kind,
        "findings": [asdict(finding) for finding in diagnosis.findings],
    }
    return json.dumps(content, indent=2)


def _as_text(diagnosis: Diagnosis) -> str:
    texts = ({key: printable(text) for key, text in asdict(finding).items()} for finding in diagnosis.findings)
    blocks = [_block(Finding(**text)) for text in texts]
    counts = ", ".join(
        f"{count} {level}{'' if count == 1 else 's'}" for level in LEVELS if (count := diagnosis.count(level))
    )
    return "\n\n".join([*blocks, f"{printable(str(diagnosis.path))} ({diagnosis.kind}): {counts or 'nothing wrong'}"])


def _block(finding: Finding) -> str:
    head = f"{click.style(finding.level, fg=_COLOURS[finding.level], bold=True)} {finding.code}  {finding.where}"
    parts = [("", finding.what), ("why: ", finding.why), ("fix: ", finding.fix)]
    width = min(120, shutil.get_terminal_size((110, 24)).columns)
    lines = [
        textwrap.fill(
            label + text, width, initial_indent="  ", subsequent_indent="  " + " " * len(label),
            break_long_words=False, break_on_hyphens=False,
        )
        for label, text in parts
    ]  # fmt: skip
    return "\n".join([head, *lines])
