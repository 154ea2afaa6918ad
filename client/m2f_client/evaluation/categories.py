"""Match a model's classes with the categories of a data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m2f.errors import shown
from m2f_client.evaluation.dataset import Dataset
from m2f_client.evaluation.fields import InvalidDataset
from m2f_client.evaluation.files import listed


@dataclass(frozen=True)
class Categories:
    """The category of each class of the model.

    Attributes:
        ids: for each class index the category id; None for a class that the data set does not have.
        unknown_classes: names of classes that the data set does not have; their instances are left out.
        unknown_categories: names of categories that have objects but no class; their objects count as missed.
        num_classes: number of the model's classes, if they are matched by their order; None if not known.
    """

    ids: tuple[int | None, ...]
    unknown_classes: tuple[str, ...] = ()
    unknown_categories: tuple[str, ...] = ()
    num_classes: int | None = None

    def __getitem__(self, label: int) -> int | None:
        """Return the category id of a class index.

        Raises:
            InvalidDataset: the class has no name and the data set no category of that index.
        """
        if not 0 <= label < len(self.ids):
            raise InvalidDataset(f"the server found class {label}; there are only {len(self.ids)} to compare with")
        return self.ids[label]

    def warnings(self) -> list[str]:
        """Return a sentence for each kind of classes and categories without a counterpart."""
        lines = []
        if self.unknown_classes:
            lines.append(f"classes not in the data set, left out: {listed(self.unknown_classes)}")
        if self.unknown_categories:
            lines.append(
                f"categories that the model does not know, counted as missed: {listed(self.unknown_categories)}"
            )
        if self.num_classes not in (None, len(self.ids)):
            lines.append(f"{self.num_classes} classes are matched in order with {len(self.ids)} categories")
        return lines


def by_name(class_names: Sequence[str] | None, dataset: Dataset) -> Categories:
    """Match classes and categories of the same name.

    If no category is spelled as the class is, upper and lower case, outer spaces and the ways to write an accent do not
    matter. Of several categories of one name, the one that has objects is meant.

    Raises:
        InvalidDataset: the server states no names, several categories with objects have the name of a class, or no
            class is in the data set.
    """
    if class_names is None:
        raise InvalidDataset(
            "the server states no class names; if its classes are in the order of the categories: --by-index"
        )
    same: dict[str, list[dict[str, Any]]] = {}
    for category in dataset.categories:
        same.setdefault(_folded(category["name"]), []).append(category)
    used, spelled = {one["category_id"] for one in dataset.annotations}, set(class_names)

    def category_of(name: str) -> int | None:
        mine = [c for c in same.get(_folded(name), []) if c["name"] == name or c["name"] not in spelled]
        best = sorted(mine, key=lambda c: (c["id"] not in used, c["name"] != name))
        rivals = [c for c in best[1:] if c["id"] in used and (c["name"] == name) == (best[0]["name"] == name)]
        if rivals:
            ids = ", ".join(str(c["id"]) for c in (best[0], *rivals))
            raise InvalidDataset(
                f"{dataset.path}: the categories with the ids {ids} have objects and the name of class {shown(name)}; "
                "allowed: one of them, or --by-index"
            )
        return int(best[0]["id"]) if best else None

    ids = tuple(map(category_of, class_names))
    if not any(identity is not None for identity in ids):
        theirs = listed([category["name"] for category in dataset.categories])
        raise InvalidDataset(f"no class of the model ({listed(class_names)}) is a category of the data set ({theirs})")
    objects, matched = dataset.objects({image.id for image in dataset.images}), set(ids)
    return Categories(
        ids,
        tuple(name for name, identity in zip(class_names, ids, strict=True) if identity is None),
        tuple(c["name"] for c in dataset.categories if objects[c["id"]] and c["id"] not in matched),
    )


def by_index(class_names: Sequence[str] | None, dataset: Dataset) -> Categories:
    """Match the first class with the category of the lowest id, and so on."""
    ids = tuple(category["id"] for category in dataset.categories)
    return Categories(ids, num_classes=None if class_names is None else len(class_names))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()
