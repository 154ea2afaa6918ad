"""Packages that only some conversions need: the extra `convert`."""

from __future__ import annotations

import importlib
from typing import Any

from m2f.errors import M2FError


def require(name: str) -> Any:
    """Import a package that is in the extra `convert`.

    Raises:
        M2FError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise M2FError(f"this needs {name}: pip install 'm2f[convert]' (no module named {error.name!r})") from error
