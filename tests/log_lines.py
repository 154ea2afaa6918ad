"""Log lines, read as a reader of logfmt does."""

import json
import re

PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"]*)')


def parse(line):
    """As a reader of logfmt does."""
    assert PAIR.sub("", line).strip() == ""
    return {name: json.loads(value) if value.startswith('"') else value for name, value in PAIR.findall(line)}
