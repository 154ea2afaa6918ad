"""Text from elsewhere, such as class names and a server's errors, made safe for a terminal."""

from __future__ import annotations

import re
from contextlib import suppress

import click

# Control characters other than the line feed, which a terminal obeys; bidirectional overrides, which change the order
# in which text is shown; halves of surrogate pairs, which cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return text with U+FFFD in place of each character that a terminal would obey instead of showing.

    >>> printable("cat\x1b[31m")
    'cat�[31m'
    """
    return _UNPRINTABLE.sub("\ufffd", text)


def complain(message: str) -> None:
    """Print an error of a command to standard error, if that can be written to."""
    with suppress(OSError):
        click.echo(f"m2f: {printable(message)}", err=True)
