"""Log lines: one line whatever is in them, and nothing a client sends looks like a field of its own."""

import pytest
from log_lines import parse

from m2f_backend.logfmt import logfmt


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "a-b_c.d/e:1",
        "",
        "two words",
        'a "quote"',
        "a=b",
        "line\nkind=fault",
        "\x1b[31m",
        "\\",
        "é",
        "日本",
        "\ud800",
    ],
)
def test_any_value_comes_back_from_one_line(value):
    line = logfmt(event="error", request_id=value, ms=1.5)
    assert line.isprintable()
    assert parse(line) == {"event": "error", "request_id": value, "ms": "1.5"}


def test_plain_words_need_no_quotes():
    assert logfmt(event="loaded", threads=1, kernel="avx512") == "event=loaded threads=1 kernel=avx512"


def test_a_long_value_keeps_its_ends():
    value = parse(logfmt(trace="start" + "x" * 100_000 + "end"))["trace"]
    assert len(value) < 10_000
    assert value.startswith("start")
    assert value.endswith("end")
