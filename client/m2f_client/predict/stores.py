"""Images in object stores, through fsspec: `s3://`, `gs://` and `az://`.

Each store takes its credentials and its address as its own tools do, from the environment or their files.
"""

from __future__ import annotations

import glob
import logging
import re
from contextlib import AbstractContextManager
from functools import cache
from typing import IO, Any

from m2f_client.client_errors import InvalidRequest, UnreadableImage
from m2f_client.files import MAX_BYTES
from m2f_client.predict.video import VIDEO_SUFFIXES
from m2f_client.transports.waiting import in_thread

_SCHEMES = ("s3://", "gs://", "az://")
_MAGIC = re.compile(r"[*?[]")
_NO_RANGE = re.compile(r"\brange\b|, 416$")  # what the stores say if there is no first byte


def is_object(name: str) -> bool:
    """Say whether a name is the address of an object, a folder or a pattern in a store."""
    return name.startswith(_SCHEMES)


def find_objects(address: str) -> list[str]:
    """Return the addresses of the objects in a folder and below, or of those that match a pattern; sorted.

    Hidden ones are left out, as those of a folder on the disk. The address of an object gives the object.

    Raises:
        InvalidRequest: the package for this store is not installed.
        UnreadableImage: the store cannot be asked, or there is no such object.
    """
    store, scheme = store_of(address), address.partition("://")[0]
    try:
        is_pattern = glob.has_magic(address) and not store.exists(address)
        names = _matches(store, address) if is_pattern else store.find(address)
    except Exception as error:  # those of three libraries: there is no common base
        raise UnreadableImage(f"cannot be listed: {_reason(error)}") from error
    folder = len(_MAGIC.split(address)[0].rpartition("/")[0] if is_pattern else address.rstrip("/"))
    found = sorted(f"{scheme}://{name}" for name in names)
    return [name for name in found if "/." not in name[folder:] and name[-1] != "/"]


def _matches(store: Any, pattern: str) -> list[str]:
    return [name for name, info in store.glob(pattern, detail=True).items() if info["type"] == "file"]


def read_object(address: str, *, timeout: float, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of an object.

    Args:
        address: the object.
        timeout: seconds that the download may take.
        max_bytes: largest content.

    Raises:
        UnreadableImage: the object cannot be read, or is too large.
    """
    if address.lower().endswith(VIDEO_SUFFIXES):
        raise UnreadableImage("a video is read from a file; download it first")
    try:  # one request: asking for the size first would be a second one
        data: bytes = in_thread(store_of(address).cat_file, timeout, address, start=0, end=max_bytes + 1)
    except TimeoutError as error:
        raise UnreadableImage(f"not downloaded within {timeout:g} s") from error
    except InvalidRequest as error:
        raise UnreadableImage(str(error)) from error
    except Exception as error:  # those of three libraries: there is no common base
        raise UnreadableImage(_reason(error)) from error
    if len(data) > max_bytes:
        raise UnreadableImage(f"larger than {max_bytes >> 20} MiB")
    return data


def open_object(address: str) -> AbstractContextManager[IO[bytes]]:
    """Open an object to be read line by line.

    Raises:
        InvalidRequest: the package for this store is not installed.
        OSError: the object cannot be opened.
    """
    try:
        opened: AbstractContextManager[IO[bytes]] = store_of(address).open(address, "rb")
        return opened
    except InvalidRequest:
        raise
    except Exception as error:  # those of three libraries: there is no common base
        raise OSError(_reason(error)) from error


def store_of(address: str) -> Any:
    """Return the store of an address, as fsspec's file system.

    Raises:
        InvalidRequest: the package for this store is not installed, or lacks a setting such as the account.
    """
    return _store(address.partition("://")[0])


@cache
def _store(scheme: str) -> Any:
    try:
        import fsspec  # noqa: PLC0415 (an extra)

        logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # it logs the traceback of each error it raises
        return fsspec.filesystem(scheme, use_listings_cache=False)  # a cached listing takes 1.5 KB for each object
    except ImportError:
        raise InvalidRequest(f"{scheme}:// needs: pip install 'm2f[{scheme}]'") from None
    except Exception as error:  # such as adlfs without an account
        raise InvalidRequest(f"{scheme}:// cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such object"
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
    return "the object is empty" if _NO_RANGE.search(reason) else reason
