"""The site of the documentation: it builds without a warning, and its reference is complete."""

import html
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import m2f_client
import m2f_server
from m2f_cli.main import COMMANDS, main

pytestmark = pytest.mark.more
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    public = [
        {f"{module.__name__}.{name}", f"{item.__module__}.{name}"}  # there, or where it is defined
        for module in (m2f_client, m2f_server)
        for name in module.__all__
        if callable(item := getattr(module, name))
    ]
    assert [names for names in public if not names & documented] == []


def test_every_option_is_in_the_reference(site):
    text = html.unescape(re.sub("<[^>]+>", "", (site / "cli/index.html").read_text()))
    for name in COMMANDS:
        options = {option for p in main.get_command(None, name).params for option in p.opts if option[:2] == "--"}
        assert options  # a command whose requirements are missing has none
        shown = text.split(f"Usage:\nm2f {name} ")[1].split("Usage:\n")[0]
        assert options <= set(re.findall(r"--[\w-]+", shown)), name


def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not re.search(r"<(script|img)[^>]+src=.?https?:|<link[^>]+stylesheet[^>]+https?:", page.read_text())
