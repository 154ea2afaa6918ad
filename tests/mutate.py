"""Damage to files and bodies, the same for the same random numbers."""

import struct
import zlib
from dataclasses import replace

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ODD = [
    bytes(1),
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xd9",
    b"\xff\xda",
    b'"',
    b"]",
]


def mutated(rng, data, others):
    """One to four kinds of damage to some bytes; the checksums of a PNG are right again half of the time."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(_DAMAGE)(rng, data, others)
    return with_checksums(data) if data.startswith(PNG_SIGNATURE) and rng.random() < 0.5 else data


def mutated_post(rng, post, others):
    """A body over HTTP, damaged where its tensors begin or before, or told to begin elsewhere."""
    headers = dict(post.headers)
    said = headers.get("Inference-Header-Content-Length", "")
    size = int(said) if said.isdecimal() else len(post.body)
    where = rng.random()
    if where < 0.2:
        headers["Inference-Header-Content-Length"] = str(
            rng.choice([size + rng.randint(-9, 9), rng.randint(-1, 10**5)])
        )
    elif where < 0.8:
        return replace(post, body=mutated(rng, post.body[:size], others) + post.body[size:])
    return replace(post, body=mutated(rng, post.body, others), headers=tuple(headers.items()))


def with_checksums(data):
    """A PNG whose chunks have the checksums of what is in them, as far as they can be followed."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        content = data[at + 4 : at + 8 + length]
        out.append(data[at : at + 4] + content + struct.pack(">I", zlib.crc32(content)))
        at += 12 + length
    return b"".join(out) + data[at:]


def _span(rng, data):
    """A part of some bytes, in the first kilobyte half of the time: headers are there."""
    begin = rng.randrange(max(1, min(len(data), 1024 if rng.random() < 0.5 else len(data))))
    return begin, min(len(data), begin + rng.choice([1, 4, 16, 200]))


def _flip(rng, data, _others):
    changed = bytearray(data)
    for _ in range(min(len(data), rng.randint(1, 8))):
        changed[_span(rng, data)[0]] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng, data, _others):
    return data[: rng.randrange(len(data) + 1)]


def _put(rng, data, _others):
    begin, _ = _span(rng, data)
    odd = rng.choice(_ODD)
    return data[:begin] + odd + data[begin + len(odd) :]


def _remove(rng, data, _others):
    begin, end = _span(rng, data)
    return data[:begin] + data[end:]


def _repeat(rng, data, _others):
    begin, end = _span(rng, data)
    return data[:end] + data[begin:end] * rng.choice([1, 3, 50]) + data[end:]


def _splice(rng, data, others):
    """Put a part of another file in."""
    other = rng.choice(others)
    (begin, end), (theirs, their_end) = _span(rng, data), _span(rng, other)
    return data[:begin] + other[theirs:their_end] + data[end:]


_DAMAGE = [_flip, _flip, _put, _truncate, _remove, _repeat, _splice]
