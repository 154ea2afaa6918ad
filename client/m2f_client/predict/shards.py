"""Shards of a run: which images belong to which shard, and a fingerprint of a set of images.

A name's key depends on the name alone. So every process, on every machine, shares out the same names alike, and images
that are added later move none of the others.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)
_KEYS = 1 << 64


def key_of(name: str) -> int:
    """Return the key of a name, 64 bits."""
    data = name.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Shard:
    """One of the shards into which a run is divided.

    Attributes:
        index: number of the shard, from 0.
        count: number of shards.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that a text such as `3/8` names.

        Raises:
            ValueError: the text names none.
        """
        found = _SHARD.fullmatch(text)
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if shard.index >= shard.count:
            raise ValueError(f"{text!r} is not I/N with 0 <= I < N: 0/8 is the first of 8 shards, 7/8 the last")
        return shard

    def has(self, key: int) -> bool:
        """Say whether the name with this key belongs to the shard."""
        return key % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard(0, 1)
"""The only shard of a run that is not divided."""


@dataclass
class Fingerprint:
    """Tells sets of names apart: their number, and the sum of their keys. The order does not matter.

    Attributes:
        names: number of names.
        total: sum of their keys, modulo 2^64.
    """

    names: int = 0
    total: int = 0

    def add(self, key: int) -> None:
        """Add the name with this key."""
        self.names += 1
        self.total = (self.total + key) % _KEYS

    def __str__(self) -> str:
        return f"{self.names}:{self.total:016x}"
