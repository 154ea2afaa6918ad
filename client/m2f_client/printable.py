"""Text of others, such as class names and a server's errors, for a terminal."""

from __future__ import annotations

import re

# all of Unicode's control characters but the line feed, which a terminal obeys; overrides of the direction of writing,
# which show what is not there; halves of surrogate pairs, which cannot be written
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return text with U+FFFD in place of each character that a terminal would obey and not show.

    >>> printable("cat\x1b[31m")
    'cat�[31m'
    """
    return _UNPRINTABLE.sub("\ufffd", text)
