"""The weights of a checkpoint, put into a network, whatever the training wrapped around them.

Every tensor of a file has a dotted name: the keys of the dictionaries that hold it, `state_dict.backbone.conv1.weight`.
The weights of a network are the tensors whose names end in the network's own names, all behind one prefix. So nested
dictionaries, `module.` (DistributedDataParallel, averaged models), `model.` (Lightning) and plain weights are one case.
"""

from __future__ import annotations

import itertools
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from m2f.errors import shown
from m2f_export.export_errors import ExportError, reason
from m2f_export.files import check_file, read_object
from m2f_export.sources.base import checked_names

INDEX = ".index.json"  # how the name of an index ends, as Hugging Face's libraries write it
# Parts of names that come from wrappers and may stand anywhere: torch.compile, FSDP, activation checkpointing,
# DistributedDataParallel.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"})
_IMMATERIAL = "num_batches_tracked"  # a counter of training, which files of other tools lack
# Parts of names that stand for averaged weights: `ema`, `model_ema.module`, `state_dict_ema`, and the teacher of
# semi-supervised training, who is the average of the student.
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|teacher)(?:[._]|$)", re.IGNORECASE)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_DEEPEST = 8  # dictionaries in dictionaries
_SHOWN = 3  # names of each kind in a message
_ZIP, _PICKLE, _GZIP = b"PK\x03\x04", b"\x80", b"\x1f\x8b"
_LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # torch.save before PyTorch 1.6: the number after two bytes


def read_checkpoint(path: Path) -> Mapping[Any, Any]:
    """Read a checkpoint: a dictionary that `torch.save` wrote, a safetensors file, or the index of several such files.

    Only tensors and plain values are unpickled, so no code of the file ever runs.

    Raises:
        ExportError: the file cannot be read, or is not a checkpoint.
    """
    if path.name.endswith(INDEX):
        return {name: value for shard in shards(path) for name, value in read_checkpoint(shard).items()}
    head = check_kind(path)
    try:
        if is_safetensors(head):
            return load_file(path)
        # mmengine pickles its message log beside the weights, Lightning its hyperparameters: stand-ins replace
        # everything but tensors and plain values
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if head.startswith(_ZIP) else []
        stand_ins: list[Any] = [(_InertDict if "dict" in name.lower() else _Inert, name) for name in names]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that another version wrote
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle is a program for torch's unpickler: it may raise anything
        raise ExportError(f"{path} is not a checkpoint that torch can read: {_why(error)}") from error
    if not isinstance(contents, Mapping):
        found = "an object of Python" if isinstance(contents, _Inert) else f"a {type(contents).__name__}"
        raise ExportError(f"{path} holds no weights, but {found}; allowed: a dictionary, such as model.state_dict()")
    return contents


def shards(index: Path) -> list[Path]:
    """Return the files that an index, such as `model.safetensors.index.json`, names.

    Raises:
        ExportError: the index cannot be read, names files elsewhere, or a file is missing.
    """
    weight_map = read_object(index).get("weight_map")
    named = weight_map.values() if isinstance(weight_map, dict) else ()
    names = sorted({name for name in named if isinstance(name, str)})
    if not names or len(names) != len(set(map(str, named))):
        raise ExportError(f"{index} has no 'weight_map'; allowed: an object from the names of weights to files")
    if outside := [name for name in names if Path(name).name != name or name.endswith(INDEX)]:
        raise ExportError(f"{index} names {shown(outside[0])}; allowed: files of weights beside it")
    files = [index.with_name(name) for name in names]
    if missing := [file.name for file in files if not file.exists()]:
        raise ExportError(f"{index} names {len(files)} files, and {len(missing)} are missing: {some(missing)}")
    return files


def bytes_of(path: Path) -> int:
    """Return the size of a checkpoint in bytes, all its files together.

    Raises:
        ExportError: a file of it is missing.
    """
    files = shards(path) if path.name.endswith(INDEX) else [path]
    return sum(file.stat().st_size for file in files)


def check_kind(path: Path) -> bytes:
    """Check that a file may be a checkpoint, and return its first bytes.

    Raises:
        ExportError: the file cannot be read, or holds something else.
    """
    head = check_file(path)
    if foreign := _foreign(path, head):
        raise ExportError(f"{path} is not a checkpoint that torch can read: it is {foreign}")
    return head


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins so is a safetensors file: the length of a header, and the header."""
    return head[8:10] == b'{"'


def is_pickle(head: bytes) -> bool:
    """Return whether a file that begins so is a pickle that `torch.save` did not write."""
    return head.startswith(_PICKLE) and not head[2:].startswith(_LEGACY)


def _foreign(path: Path, head: bytes) -> str:
    """Return what else a file is, in words; empty if it may be a checkpoint."""
    if head.startswith(_ZIP):
        return _foreign_zip(path)
    if head.startswith(_GZIP) or tarfile.is_tarfile(path):
        return "an archive: unpack it first"
    if is_pickle(head):
        return "a pickle, as detectron2 writes them; allowed: what torch.save writes (.pth)"
    if not head.startswith(_PICKLE) and not is_safetensors(head):
        return "neither what torch.save writes (.pth) nor safetensors"
    return ""


def _foreign_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # of a damaged directory zipfile raises many types
        return "incomplete: a copy or a download was interrupted"
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        return "a zip archive: unpack it first"
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        return "compressed, which torch.save never does: unpack it, and zip it without compression"
    return ""


def _why(error: Exception) -> str:
    """Return what torch says of a file, with another advice than to trust the file."""
    _, said, cause = str(error).partition("WeightsUnpickler error: ")
    if not said:
        return reason(error)
    what = re.split(r"\.? (?:Please|Check) ", " ".join(cause.split()))[0]
    return f"{what[:200]}; allowed: weights alone, such as torch.save(model.state_dict(), FILE)"


class _InertDict:
    """Stands for a kind of dictionary: torch's unpickler fills plain ones only."""

    def __new__(cls, *_args: object, **_kwargs: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _Inert:
    """Stands for any other pickled object."""

    def __new__(cls, *_args: object, **_kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def stated_classes(contents: Mapping[Any, Any], path: Path) -> tuple[str, ...]:
    """Return the class names that a checkpoint of mmengine states; empty without any.

    Raises:
        ExportError: a name is not text.
    """
    meta = _mapping(contents.get("meta"))
    names = _mapping(meta.get("dataset_meta")).get("classes") or meta.get("CLASSES")
    if isinstance(names, str):
        return (names,)
    return checked_names(names, f"{path}: the classes in its 'meta'") if isinstance(names, list | tuple) else ()


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


class Weights(Protocol):
    """What holds weights by name: a module, or a module under other names."""

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Return the weights by name."""

    def load_state_dict(self, weights: dict[str, torch.Tensor], *, strict: bool) -> Any:
        """Replace the named weights."""


def load_weights(
    network: Weights,
    contents: Mapping[Any, Any],
    path: Path,
    wanted_by: Path,
    *,
    without: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """Put the weights of a checkpoint into a network.

    Of several sets of weights those that were averaged over the training are taken, as trainers evaluate them; else
    those of `state_dict`. mmengine is the exception: it writes the averaged weights into `state_dict`, and the others
    under `ema_state_dict`.

    Args:
        network: the network; its weights are replaced.
        contents: the checkpoint, as `read_checkpoint` returns it.
        path: the checkpoint's file, for messages.
        wanted_by: the network's configuration, for messages.
        without: parts of names, such as `criterion`. Weights that have one in their names are for training, and are not
            read.

    Returns:
        A sentence that says which weights were taken, if the checkpoint has several sets of them; else nothing.

    Raises:
        ExportError: the weights are not those of the network, are there more than once, or are not finite. The message
            shows up to three names of each kind.
    """
    own = network.state_dict()
    idle = "ema_state_dict" if contents.get("state_dict") else None  # mmengine's
    tensors = dict(_tensors({key: value for key, value in contents.items() if key != idle}))
    tensors = {name: tensor for name, tensor in tensors.items() if without.isdisjoint(name.split("."))}
    if not tensors:
        raise ExportError(f"{path} holds no weights: there is no tensor in it; its keys: {some(contents)}")
    fits = sorted(_fits(own, tensors), key=lambda fit: (fit.weights, fit.rank), reverse=True)
    if not fits:
        raise ExportError(f"{path} does not fit {wanted_by}: it has {some(tensors)}; needed: {some(own)}")
    best = fits[0]
    complete = [fit for fit in fits if fit.weights == best.weights]
    if equal := [fit for fit in complete[1:] if fit.rank == best.rank]:
        places = " and ".join(sorted(repr(fit.prefix) for fit in (best, *equal)))
        raise ExportError(f"{path} holds weights for {wanted_by} more than once, under {places}; allowed: once")
    if problems := best.problems(own):
        if _SHARD.search(path.name):
            problems.append(f"{path.name} is one of several files: give their index, *{INDEX}")
        raise ExportError(f"{path} does not fit {wanted_by}: {'; '.join(problems)}")
    try:
        network.load_state_dict(best.found, strict=False)  # what is missing is immaterial
    except (RuntimeError, NotImplementedError) as error:  # a kind of tensor that cannot be copied
        raise ExportError(f"{path} cannot be loaded: {reason(error)}") from error
    check_finite(network, path)
    others = " and ".join(repr(fit.prefix) for fit in complete[1:])
    return (f"{path} has several sets of weights: {best.prefix!r} is taken, not {others}",) if others else ()


@dataclass
class _Fit:
    """The tensors behind one prefix.

    Attributes:
        prefix: what stands before the network's own names, with the dot; may be empty.
        found: the tensors that have a name of the network, by that name.
        unexpected: names behind the prefix that the network does not have.
    """

    prefix: str
    found: dict[str, torch.Tensor] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    @property
    def weights(self) -> int:
        """How many weights of the network there are, without counters."""
        return sum(not name.endswith(_IMMATERIAL) for name in self.found)

    @property
    def rank(self) -> int:
        """Which set of weights is taken first: 2 averaged ones, 1 those of `state_dict`, 0 any other."""
        if _AVERAGED.search(self.prefix):
            return 2
        return 1 if self.prefix.startswith("state_dict.") else 0

    def problems(self, own: Mapping[str, torch.Tensor]) -> list[str]:
        """Return why these are not the weights of a network, in words; empty if they are."""
        shapes = {name: (list(tensor.shape), list(own[name].shape)) for name, tensor in self.found.items()}
        copies = {f"ema_{name.replace('.', '_')}" for name in own}
        kinds = {
            "missing": [name for name in own if name not in self.found and not name.endswith(_IMMATERIAL)],
            "unexpected": [name for name in self.unexpected if not _is_copy(name, copies)],
            "of another shape": [f"{name} {has} for {needs}" for name, (has, needs) in shapes.items() if has != needs],
        }
        return [f"{len(names)} {kind} ({some(names)})" for kind, names in kinds.items() if names]


def _is_copy(name: str, copies: Set[str]) -> bool:
    """Return whether a name is that of a counter, or of the second copy of a weight that mmcv's EMAHook keeps."""
    return name.endswith(_IMMATERIAL) or name.rpartition(".")[2] in copies


def _fits(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> list[_Fit]:
    """Return a fit for every prefix that has a name of the network behind it."""
    wrappers = _WRAPPERS - {part for name in own for part in name.split(".")}
    endings = {name: dict(_endings(name, wrappers)) for name in tensors}
    prefixes = {prefix for ends in endings.values() for prefix, rest in ends.items() if rest in own}
    fits = {prefix: _Fit(prefix) for prefix in prefixes}
    for name, ends in endings.items():
        for prefix in prefixes & ends.keys():
            if ends[prefix] in own:
                fits[prefix].found[ends[prefix]] = tensors[name]
            else:
                fits[prefix].unexpected.append(name)
    return list(fits.values())


def _endings(name: str, wrappers: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Split a dotted name before each of its parts: what is before it, and the rest without the wrappers' parts."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part not in wrappers:
            yield ".".join([*parts[:at], ""]), ".".join(p for p in parts[at:] if p not in wrappers)


def _tensors(contents: Mapping[Any, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Return every tensor in nested dictionaries by its dotted name."""
    for key, value in contents.items():
        if isinstance(value, torch.Tensor):
            yield f"{path}{key}", value
        elif isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _tensors(value, f"{path}{key}.", depth + 1)


def check_finite(network: Weights, path: Path) -> None:
    """Refuse weights that are NaN or infinite, as a training leaves them that diverged.

    Raises:
        ExportError: at least one weight is not finite; the message shows up to three names.
    """
    if wrong := [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise ExportError(f"{path}: {len(wrong)} weights hold NaN or infinity ({some(wrong)}): the training diverged")


def some(names: Iterable[object]) -> str:
    """Return up to three names for a message, or `none`."""
    first = [str(name)[:200] for name in itertools.islice(names, _SHOWN + 1)]
    return ", ".join(first[:_SHOWN]) + (", …" if len(first) > _SHOWN else "") or "none"
