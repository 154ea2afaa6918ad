"""What others wrote, class names and errors, does not reach a terminal as orders."""

import io
import json
import sys
import unicodedata

import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from PIL import Image
from rich.console import Console

from m2f_cli.main import main
from m2f_client import ServerError
from m2f_client.evaluation.report import SHOWN, summary
from m2f_client.fake import result_of, stacked
from m2f_client.printable import printable

ORDERS = "\x1b]0;owned\x07\x1b[31mred\r\x9b2J"


def test_every_control_character_but_the_line_feed():
    control = {chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) in ("Cc", "Cs")}
    assert {c for c in control if printable(c) == c} == {"\n"}
    assert printable("a\u202eb\u2066") == "a\ufffdb\ufffd"


@pytest.mark.parametrize("text", ["cat", "Bär\n", "猫　犬", "a\u00a0b\u202fc", "می\u200cشود", "👩\u200d💻", ""])
def test_text_stays(text):
    assert printable(text) == text


def image():
    stream = io.BytesIO()
    Image.new("RGB", (4, 3)).save(stream, "PNG")
    return stream.getvalue()


def m2f(answer, *arguments, class_names=None):
    with serving(answer, class_names=class_names) as fake:
        return CliRunner().invoke(main, ["predict", *arguments, "--url", fake.url])


@pytest.mark.parametrize("count", [1, 11])  # a table each, a line each
def test_class_names_and_file_names(tmp_path, monkeypatch, count):
    monkeypatch.chdir(tmp_path)
    files = [f"{index}\x1b[31m.png" for index in range(count)]
    for name in files:
        (tmp_path / name).write_bytes(image())
    found = stacked([result_of(np.ones((1, 3, 4)))])
    ran = m2f(lambda _: found, *files, "--out", "out", class_names=json.dumps([ORDERS]))
    assert ran.exit_code == 0, ran.stderr
    assert "0\ufffd[31m.png" in ran.stdout
    assert "\ufffd]0;owned\ufffd\ufffd[31mred" in ran.stdout
    assert not set("\x1b\x07\r\x9b") & set(ran.stdout + ran.stderr)


def test_errors(tmp_path):
    def fail(_):
        raise ServerError(ORDERS)

    (tmp_path / "a.png").write_bytes(image())
    ran = m2f(fail, str(tmp_path / "a.png"))
    assert ran.exit_code == 1
    assert "\ufffd]0;owned\ufffd\ufffd[31mred" in ran.stderr
    assert not set("\x1b\x07\r\x9b") & set(ran.stdout + ran.stderr)


def test_names_of_a_data_set():
    names = (ORDERS, "[red]no markup[/blue]")
    figures = {**dict.fromkeys(SHOWN, 0.5), "per_class": [{"name": name, "objects": 1, "AP": 0.5} for name in names]}
    about = {"dataset": "d", "server": "s", "images": 1, "objects": 2, "parameters": {}}
    stream = io.StringIO()
    Console(file=stream, width=100).print(*summary({**about, "segm": figures, "bbox": figures}))
    assert "[red]no markup[/blue]" in stream.getvalue()
    assert not set("\x1b\x07\r\x9b") & set(stream.getvalue())
