"""Format log lines as `key=value` pairs, the logfmt that Loki and others read."""

import json
import re

_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\uffff]+")
_MAX_CHARACTERS = 8192  # of a value: clients choose some values


def logfmt(**fields: object) -> str:
    r"""Return one line; a value that is not a plain word is quoted and escaped as in JSON.

    >>> logfmt(event="refused", request_id="", message="two\nlines")
    'event=refused request_id="" message="two\\nlines"'
    """
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in fields.items())


def _quoted(text: str) -> str:
    if len(text) > _MAX_CHARACTERS:  # the end of a traceback says most
        text = f"{text[: _MAX_CHARACTERS // 2]} ... {text[-_MAX_CHARACTERS // 2 :]}"
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
