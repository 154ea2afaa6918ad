"""Text that names classes: the settings `classes` and `class_score_thresholds`.

A class name may hold anything, commas and equals signs too. Each setting has two forms:

    circle,2,road, route                     names or indices between commas
    ["circle", 2, "road, route"]             a JSON list

    circle=0.7,road, route=0.99              a name or an index, and its threshold
    {"circle": 0.7, "road, route": 0.99}     a JSON object

Between commas, the longest name that the model has counts.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from m2f.errors import InputError, shown
from m2f.parameters import Allowed, check_value, is_int, is_number

T = TypeVar("T")

_NAMES_SHOWN = 100  # most class names in an error message
_LONGEST_COMPOSED = 1000  # characters


def _may_be_thresholds(text: Any) -> bool:
    """Return whether a value may be thresholds, as far as this can be said without the model's class names."""
    if not isinstance(text, str):
        return False
    pairs = _parsed(text, "{")
    if pairs is not None:
        return all(is_number(number) and 0 <= number <= 1 for _, number in pairs)
    return not text.strip() or _threshold(text) is not None


LABELS = Allowed(
    "a string of class indices or names, comma-separated or a JSON list",
    lambda value: isinstance(value, str),
    is_text=True,
)
THRESHOLDS = Allowed(
    'a string such as "circle=0.7,2=0.3" or a JSON object, each threshold from 0 to 1', _may_be_thresholds, is_text=True
)


class ClassNames:
    """The classes of a model, to be found by name or index."""

    def __init__(self, names: Sequence[str], num_classes: int) -> None:
        """Prepare the look-up.

        Args:
            names: class names by index; names beyond `num_classes` are ignored.
            num_classes: number of classes.
        """
        self._names, self._num_classes = names, num_classes
        known = list(enumerate(names[:num_classes]))[::-1]  # of several classes with one name, the first counts
        self._exact = {name: index for index, name in known}
        self._plain = {_plain(name): index for index, name in known}
        self._parts: dict[str, set[int]] = {}  # of names with commas: first part -> numbers of parts
        for _, name in known:
            if "," in name:
                self._parts.setdefault(_plain(name.partition(",")[0]), set()).add(name.count(",") + 1)

    def find(self, word: str) -> int | None:
        """Return the index of the class that a word names, or None.

        The word is looked up as it is, then without outer spaces and with composed accents, then as an index.
        """
        if word in self._exact:
            return self._exact[word]
        plain = _plain(word)
        if plain in self._plain:
            return self._plain[plain]
        is_index = plain.isdecimal() and len(plain) <= len(str(self._num_classes)) and int(plain) < self._num_classes
        return int(plain) if is_index else None

    def labels(self, text: str, *, key: str = "classes") -> list[int]:
        """Read a list such as the setting `classes`: the indices of the classes that a text names.

        Args:
            text: names and indices, comma-separated or as a JSON list.
            key: name of the list in messages.

        Raises:
            InputError: the model does not have a class, or the JSON list holds something else than names and indices.
        """
        items = None if text in self._exact else _parsed(text, "[")
        if items is None:
            return self._between_commas(text, self.find, lambda words: self._unknown(key, words[0].strip()))
        if not all(isinstance(item, str) or is_int(item) for item in items):
            raise _refused(key, LABELS, text)
        return [self._item(key, item) for item in items]

    def thresholds(self, text: str) -> list[tuple[int, float]]:
        """Read `class_score_thresholds`: the index of each class that a text names, and its threshold.

        Raises:
            InputError: the model does not have a class, or a threshold is not a number from 0 to 1.
        """
        key = "class_score_thresholds"
        check_value(key, text, THRESHOLDS)
        pairs = _parsed(text, "{")
        if pairs is not None:
            return [(self._item(key, name), float(number)) for name, number in pairs]

        def read(entry: str) -> tuple[int, float] | None:
            name, number = _threshold(entry) or ("", 0.0)
            label = self.find(name) if name else None
            return None if label is None else (label, number)

        def refused(words: list[str]) -> InputError:
            name, equals, _ = words[0].rpartition("=")
            if equals and self.find(name) is not None:  # the class is known, so the threshold is wrong
                return _refused(key, THRESHOLDS, words[0])
            parts = (word.rpartition("=") for word in words)
            ends = (end for end, part in enumerate(parts, start=1) if part[1] and _fraction(part[2]) is not None)
            return self._unknown(key, ",".join(words[: next(ends)]).rpartition("=")[0].strip())

        return self._between_commas(text, read, refused) if text.strip() else []

    def _between_commas(
        self, text: str, read: Callable[[str], T | None], refused: Callable[[list[str]], InputError]
    ) -> list[T]:
        """Read the entries of a text, where a comma may end an entry or be part of its name.

        Args:
            text: the text.
            read: returns the value of an entry, or None for a text that is not one entry.
            refused: returns the error, given the words between commas from the first one that belongs to no entry.
        """
        words = text.split(",")
        open_ends: list[tuple[int, Any]] = [(0, None)]  # next word, and the entries before it: (last, (last but one, …
        tried = set()
        while open_ends:
            start, entries = open_ends.pop()
            if start == len(words):
                return list(_unlinked(entries))[::-1]
            if start not in tried:
                tried.add(start)
                for end in self._ends(words, start):  # ascending: the longest entry is popped first
                    value = read(",".join(words[start:end]))
                    if value is not None:
                        open_ends.append((end, (value, entries)))
        raise refused(words[max(tried) :])

    def _ends(self, words: list[str], start: int) -> list[int]:
        """Return where an entry that begins with the word at `start` may end, ascending."""
        parts = self._parts.get(_plain(words[start]), ()) if self._parts else ()
        return sorted({start + 1, *(start + count for count in parts if start + count <= len(words))})

    def _item(self, key: str, item: str | int) -> int:
        """Return the class that an item of a JSON list or object names; a number is always an index."""
        label = self.find(item) if isinstance(item, str) else item if 0 <= item < self._num_classes else None
        if label is None:
            raise self._unknown(key, item)
        return label

    def _unknown(self, key: str, word: str | int) -> InputError:
        names = self._names[:_NAMES_SHOWN]
        more = f" and {len(self._names) - _NAMES_SHOWN} more" if len(self._names) > _NAMES_SHOWN else ""
        known = f"; names: {', '.join(map(_quoted, names))}{more}" if names else ""
        return InputError(
            f"parameter '{key}' has no class {shown(word)}; allowed: 0 to {self._num_classes - 1}{known}",
            kind="parameter",
        )


def _refused(key: str, allowed: Allowed, value: str) -> InputError:
    return InputError(f"parameter '{key}' must be {allowed.text}; got {shown(value)}", kind="parameter")


def _parsed(text: str, opening: str) -> list[Any] | None:
    """Return a JSON list, or the pairs of a JSON object, that begins with `opening`; None for other text."""
    if not text.lstrip().startswith(opening):
        return None
    try:
        return json.loads(text, object_pairs_hook=list)  # type: ignore[no-any-return]
    except (ValueError, RecursionError):
        return None


def _threshold(entry: str) -> tuple[str, float] | None:
    """Read `"circle=0.7"`; a name may hold an equals sign. Returns None for other text."""
    name, _, text = entry.rpartition("=")
    number = _fraction(text)
    return None if number is None or not name.strip() else (name, number)


def _fraction(text: str) -> float | None:
    """Return a number from 0 to 1, or None for other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number <= 1 else None


def _plain(name: str) -> str:
    """Return a name without outer spaces; with composed accents if short, because the time for this is quadratic."""
    name = name.strip()
    return unicodedata.normalize("NFC", name) if len(name) <= _LONGEST_COMPOSED else name


def _quoted(name: str) -> str:
    """Return a name for a list of names; as JSON if it would be ambiguous there, or not printable."""
    is_plain = name and name == name.strip() and not {",", '"'} & set(name)
    return name if is_plain and name.isprintable() else json.dumps(name, ensure_ascii=not name.isprintable())


def _unlinked(entries: Any) -> Iterator[Any]:
    while entries is not None:
        value, entries = entries
        yield value
