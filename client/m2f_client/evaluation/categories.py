"""Match a model's classes with the categories of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m2f_client.evaluation.dataset import Dataset, InvalidDataset, listed


@dataclass(frozen=True)
class Categories:
    """The category of each class of the model.

    Attributes:
        ids: for each class index the category id; None for a class that the data set does not have.
        unknown_classes: names of classes that the data set does not have; their instances are left out.
        unknown_categories: names of categories that have objects but no class; their objects count as missed.
    """

    ids: tuple[int | None, ...]
    unknown_classes: tuple[str, ...] = ()
    unknown_categories: tuple[str, ...] = ()

    def __getitem__(self, label: int) -> int | None:
        """Return the category id of a class index.

        Raises:
            InvalidDataset: the class has no name and the data set no category of that index.
        """
        if not 0 <= label < len(self.ids):
            raise InvalidDataset(f"the server found class {label}; there are only {len(self.ids)} to compare with")
        return self.ids[label]

    def warnings(self) -> list[str]:
        """Return a sentence for the classes, and one for the categories, without a counterpart."""
        lines = []
        if self.unknown_classes:
            lines.append(f"classes not in the data set, left out: {listed(self.unknown_classes)}")
        if self.unknown_categories:
            lines.append(
                f"categories that the model does not know, counted as missed: {listed(self.unknown_categories)}"
            )
        return lines


def by_name(class_names: Sequence[str] | None, dataset: Dataset) -> Categories:
    """Match classes and categories of the same name, ignoring case and outer spaces.

    Raises:
        InvalidDataset: the server states no names, two categories share one, or no class is in the data set.
    """
    if class_names is None:
        raise InvalidDataset(
            "the server states no class names; if its classes are in the order of the categories: --by-index"
        )
    ids: dict[str, int] = {}
    for category in dataset.categories:
        if _folded(category["name"]) in ids:
            raise InvalidDataset(f"{dataset.path}: two categories are named {category['name']!r}")
        ids[_folded(category["name"])] = category["id"]
    known = {_folded(name) for name in class_names}
    matched = Categories(
        tuple(ids.get(_folded(name)) for name in class_names),
        tuple(name for name in class_names if _folded(name) not in ids),
        tuple(c["name"] for c in _used(dataset) if _folded(c["name"]) not in known),
    )
    if not any(identity is not None for identity in matched.ids):
        theirs = listed([category["name"] for category in dataset.categories])
        raise InvalidDataset(f"no class of the model ({listed(class_names)}) is a category of the data set ({theirs})")
    return matched


def by_index(dataset: Dataset) -> Categories:
    """Match the first class with the category of the lowest id, and so on."""
    return Categories(tuple(category["id"] for category in dataset.categories))


def _used(dataset: Dataset) -> list[dict[str, Any]]:
    objects = dataset.objects({image.id for image in dataset.images})
    return [category for category in dataset.categories if objects[category["id"]]]


def _folded(name: str) -> str:
    return name.strip().casefold()
