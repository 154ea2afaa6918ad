"""Read a data URL (RFC 2397), so that plain JSON can carry an image: `data:image/jpeg;base64,/9j/4AAQ...`."""

from __future__ import annotations

import base64
import binascii
import re

from m2f.errors import InputError, shown

_SCHEME = re.compile(rb"\s*data:", re.IGNORECASE)
_MAX_HEAD = 1 << 10  # bytes before the comma: a media type and its parameters
_MEDIA_TYPES = ("image/", "application/octet-stream")  # the second is what browsers say of a file they do not know
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]")
_FORM = "allowed: 'data:image/jpeg;base64,...', with image/png or image/webp likewise"


def is_data_url(data: bytes) -> bool:
    """Say whether the bytes are a data URL; no image file begins as one."""
    return _SCHEME.match(data) is not None


def decode_data_url(url: bytes, *, max_bytes: int) -> bytes:
    """Return the file in a data URL. What the file is, its content decides, not the media type.

    White space, such as line breaks, may stand anywhere in the base64, and its padding may be missing.

    Args:
        url: the data URL.
        max_bytes: largest allowed file; checked before the base64 is decoded.

    Raises:
        InputError: the URL has another form, its media type is no image's, its base64 is damaged, or its file is too
            large.
    """
    begin = url.index(b":") + 1
    comma = url.find(b",", begin, begin + _MAX_HEAD)
    if comma < 0:
        raise InputError(f"the data URL has no comma in its first {_MAX_HEAD} bytes; {_FORM}", kind="image_format")
    media_type, *parameters = [part.strip() for part in url[begin:comma].decode("latin-1").lower().split(";")]
    if not media_type.startswith(_MEDIA_TYPES):
        raise InputError(f"the data URL has the media type {shown(media_type)}; {_FORM}", kind="image_format")
    if "base64" not in parameters:
        raise InputError(f"the data URL has no ';base64' before its comma; {_FORM}", kind="image_format")
    text = url[comma + 1 :].translate(None, b" \t\r\n\f")
    size = len(text) * 3 // 4 - text[-2:].count(b"=")
    if size > max_bytes:
        raise InputError(
            f"the image is too large: {size} bytes in its data URL; allowed are {max_bytes}", kind="image_too_large"
        )
    return _decoded(text)


def _decoded(text: bytes) -> bytes:
    foreign = _NO_BASE64.search(text)
    if foreign:
        character, at = foreign[0].decode("latin-1"), foreign.start()
        raise InputError(
            f"the base64 of the data URL has {character!r} as character {at}; allowed are A-Z, a-z, 0-9, '+', '/', and "
            "'=' at the end",
            kind="image_damaged",
        )
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise InputError(f"the base64 of the data URL is damaged: {error}", kind="image_damaged") from None
