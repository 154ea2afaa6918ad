"""What a user states of a model's classes, which overrides what the source says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from m2f.class_lists import ClassNames
from m2f.errors import InputError
from m2f_export.export_errors import ExportError
from m2f_export.files import read_text
from m2f_export.sources.base import Source, checked_names


def with_names(source: Source, file: Path) -> Source:
    """Return the source with the class names of a text file: a name a line, in the order of the labels.

    Raises:
        ExportError: the file cannot be read, or has not a name for each class.
    """
    names = [line.strip() for line in read_text(file).rstrip().split("\n")]
    if "" in names:
        raise ExportError(f"{file}: line {names.index('') + 1} is empty; allowed: a class name on each line")
    if len(names) != source.num_classes:
        raise ExportError(f"{file} has {len(names)} names; allowed: {source.num_classes}, one for each class")
    return replace(source, facts=replace(source.facts, class_names=checked_names(names, str(file))))


def with_stuff(source: Source, stuff: str) -> Source:
    """Return the source with its stuff classes stated; all others are things.

    Args:
        source: the source.
        stuff: names or indices, comma-separated or a JSON list; empty: there is no stuff.

    Raises:
        ExportError: the model does not have a class.
    """
    names, count = source.facts.class_names, source.num_classes
    try:
        labels = ClassNames(names, count).labels(stuff, key="--stuff") if stuff.strip() else []
    except InputError as error:
        raise ExportError(str(error)) from error
    return replace(source, facts=replace(source.facts, thing_classes=frozenset(range(count)) - set(labels)))
