"""Put the models of an export into a repository that other models share.

The new repository is made beside the old one, with hard links to the files that stay. Then both are exchanged in one
step. So whoever reads the repository finds the old one or the new one, even if the export is killed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from m2f.contract import PUBLIC_MODEL, models_of
from m2f_export.export_errors import ExportError

REPORT = "export.json"  # in the folder of an export's public ensemble; before exports had names, in the repository
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
_NO_PLACE = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_NO_REPORT = (
    "is not the report of an export of that name, so what belongs to it is not known: remove the file or give another "
    "--repository"
)
_FORMER_STEP = "mask2former_packed_masks"
_MOUNTS = Path("/proc/self/mountinfo")


@contextmanager
def staged(target: Path, models: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder for the models of an export; they join a repository if the block ends without an exception.

    In the repository they replace the models of an earlier export of the same name. All else stays as it is.

    Args:
        target: the repository, which need not exist.
        models: names of the models of the export; its public ensemble, which has the name of the export, is the first.

    Raises:
        ExportError: `target` is no model repository, a model of one of the names was not made by an export of this
            name, the folder of `target` cannot be written to, or the disk is full.
    """
    target = Path(os.path.realpath(target))  # a link stays, and what it points to is replaced
    stage = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with ExitStack() as held:
        held.callback(shutil.rmtree, stage, ignore_errors=True)
        try:
            _kept(target, models)
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.parent):
                _sweep(target)
                stage.mkdir()
                held.enter_context(locked(stage))
            yield stage
            for cache in list(stage.rglob("__pycache__")):  # of the server that tried it
                shutil.rmtree(cache)
            with locked(target.parent):  # another export may have finished meanwhile
                _put_in_place(stage, target, _kept(target, models))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise ExportError(f"no space left in {target.parent}; {_as_it_was(target)}") from error
            if error.errno in _NO_PLACE:
                raise ExportError(f"{error.filename or target.parent} cannot be used: {error.strerror}") from error
            raise


def _as_it_was(target: Path) -> str:
    return f"{target} is as it was" if target.exists() else "nothing was written"


def _kept(repository: Path, models: Sequence[str]) -> list[Path]:
    """Return the entries of a repository that stay beside these models of an export.

    Raises:
        ExportError: the folder is no model repository, or another model has one of the names.
    """
    if not repository.exists():
        return []
    if not repository.is_dir():
        raise ExportError(f"{repository} is not a folder; give another --repository")
    if repository in (here := Path.cwd(), *here.parents):
        raise ExportError(
            f"{repository} is the folder you are in, which would be replaced: run m2f export from another"
        )
    if mount := _mounted(repository):
        raise ExportError(f"{mount} is a mount point, which cannot be replaced: give another folder as --repository")
    owners = _owners(repository)
    kept = []
    for path in sorted(repository.iterdir()):
        if path.name == REPORT or path.name.startswith("."):
            kept += [path] if path.name != REPORT or models[0] != PUBLIC_MODEL else []
            continue
        if not _is_model(path):
            raise ExportError(
                f"{repository} is not a model repository: {path.name} in it is no model; give another --repository"
            )
        owner = owners.get(path.name)
        if owner == models[0]:
            continue
        if path.name in models:
            other = f"belongs to the export '{owner}'" if owner else "was not made by m2f export"
            raise ExportError(f"{path} {other}: it is not replaced; give another --name")
        kept.append(path)
    return kept


def _is_model(path: Path) -> bool:
    return path.is_dir() and any(entry.name == "config.pbtxt" or entry.name.isdigit() for entry in path.iterdir())


def _owners(repository: Path) -> dict[str, str]:
    """Return the name of the export that made a model, for each model that an export made."""
    owners = {}
    if (repository / REPORT).is_file():  # as exports were before they had names
        owners = dict.fromkeys((*models_of(PUBLIC_MODEL, head=True), _FORMER_STEP), PUBLIC_MODEL)
    for report in sorted(repository.glob(f"*/{REPORT}")):
        owners |= dict.fromkeys(_models(report), report.parent.name)
    return owners


def _models(report: Path) -> list[str]:
    """Return the models that an export's report names. An earlier version may have had other steps."""
    name = report.parent.name
    try:
        models = json.loads(report.read_bytes())["models"]
        foreign = [model for model in models if model != name and not model.startswith(f"{name}_")]
    except (AttributeError, ValueError, LookupError, TypeError) as error:
        raise ExportError(f"{report} {_NO_REPORT}") from error
    if foreign:
        raise ExportError(f"{report} {_NO_REPORT}")
    return list(models)


def _mounted(folder: Path) -> Path | None:
    """Return a mount point at or in a folder; None if there is none.

    Its files would be copied and then removed with the old repository.
    """
    with suppress(OSError):
        for line in os.fsdecode(_MOUNTS.read_bytes()).splitlines():
            point = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]))
            if point == folder or folder in point.parents:
                return point
    return None


def _put_in_place(stage: Path, target: Path, kept: list[Path]) -> None:
    if not target.exists():
        stage.rename(target)
        return
    with ExitStack() as changes:  # of engines, by other commands
        for path in target.iterdir():
            if path.is_dir():
                changes.enter_context(locked(path))
        for path in kept:
            _link(path, stage / path.name)
        _like(target, stage)
        if not exchange_at_once(stage, target):
            _exchange_in_turn(stage, target)


def _link(source: Path, target: Path) -> None:
    """Make the same files at another place without a copy; where the file system has no hard links, copy them."""
    if source.is_symlink() or not source.is_dir():
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)
        return
    target.mkdir()
    for path in source.iterdir():
        _link(path, target / path.name)
    _like(source, target)


def _like(source: Path, target: Path) -> None:
    """Give a folder the times, permissions and owner of another."""
    status = source.stat()
    with suppress(OSError):  # only root may give files away
        os.chown(target, status.st_uid, status.st_gid)
    shutil.copystat(source, target)


def exchange_at_once(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return False if the system cannot.

    Raises:
        OSError: the folders cannot be exchanged for another reason.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    first, second = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):  # of the kernel, of the file system
        return False
    raise OSError(code, os.strerror(code), str(other))


def _exchange_in_turn(one: Path, other: Path) -> None:
    aside = one.with_name(one.name + ".old")
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


@contextmanager
def locked(folder: Path, *, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a folder; on a file system without locks, hold none.

    `m2f rollout` and `m2f engine` hold the lock of the engine that they change, and an export the locks of all models
    while it exchanges the repository.

    Args:
        folder: the folder. If it is replaced during the wait, the lock of the new one is taken.
        waits: called before the wait if another process holds the lock.

    Raises:
        OSError: there is no such folder.
    """
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waits()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove what killed exports left beside the repository: the stages whose lock nobody holds."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}")
    for path in [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
