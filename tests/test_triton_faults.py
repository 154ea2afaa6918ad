"""The table of Triton's faults: in the docs, and as m2f doctor applies it to the server found."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from m2f_cli.doctor import doctor
from m2f_export.doctor.server_version import check_server
from m2f_export.doctor.triton_faults import FAULTS

ROOT = Path(__file__).parents[1]


def the_finding(version):
    (finding,) = [finding for finding in check_server(version) if finding.code == "triton-faults"]
    return finding


@pytest.mark.parametrize("version", ["24.10", "2.51.0"])
def test_the_faults_of_an_old_server_are_named(version):
    finding = the_finding(version)
    assert finding.level == "warning"
    assert version in finding.what
    assert not [fault.name for fault in FAULTS if fault.name not in finding.what]
    assert "26.05" in finding.fix
    assert "front" in finding.fix


def test_the_faults_of_a_newer_server_are_fewer():
    finding = the_finding("25.08")
    assert finding.level == "warning"
    assert "deep JSON" in finding.what
    assert "BYTES" not in finding.what
    assert "cancelled" not in finding.what


@pytest.mark.parametrize("version", ["26.07", "2.71.0", "2.73", "27.01"])
def test_faults_that_no_version_mends_are_a_note(version):
    finding = the_finding(version)
    assert finding.level == "note"
    assert [fault.name for fault in FAULTS if fault.name in finding.what] == [
        "`classification` of an output without rows over HTTP",
        "thousands of parameters over HTTP",
    ]


def test_the_command_names_the_faults_of_the_server_found_here(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    run = CliRunner().invoke(doctor, [str(ROOT / "model_repository"), "--json"])
    (found,) = [finding for finding in json.loads(run.output)["findings"] if finding["code"] == "triton-faults"]
    assert found["level"] == "warning"
    assert "Triton 2.51.0 (inside nvidia-pytriton" in found["what"]


def versions_with(fault):
    """The versions in the words of the docs."""
    if fault.triton is None:
        return "all, the newest source too"
    major, minor, _ = fault.triton
    year, month = fault.container
    return f"up to {major}.{minor - 1} ({year if month > 1 else year - 1}.{month - 1 if month > 1 else 12:02})"


def test_the_page_of_faults_says_the_same():
    text = (ROOT / "docs/triton-faults.md").read_text()
    table, sources = (part.partition("\n\n")[0] for part in text.split("|---|---|")[1:])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]
    assert [(row[0], row[2]) for row in rows] == [(fault.name, versions_with(fault)) for fault in FAULTS]
    assert [line.strip("|").split("|")[0].strip() for line in sources.splitlines()[1:]] == [f.name for f in FAULTS]
