"""Let mmdet be imported where mmcv has no compiled operators (`mmcv-lite`, `onedl-mmcv` without operators).

mmdet imports every operator of mmcv; Mask2Former calls none of them. Its point sampling is
`torch.nn.functional.grid_sample`, and its deformable attention falls back to plain PyTorch on tensors that are not on
a GPU. So names are enough. Calling one raises.
"""

import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from typing import NoReturn

_EXTENSION = "mmcv._ext"


class _MissingOps(types.ModuleType):
    """Has every operator by name; calling one raises."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_args: object, **_kwargs: object) -> NoReturn:
            raise RuntimeError(
                f"mmcv's operator {name!r} is not compiled here: install mmcv or onedl-mmcv with its operators"
            )

        return missing


def ensure_mmcv_ops() -> None:
    """Register a stand-in for `mmcv._ext` if the compiled module is not installed.

    Call this function before the first import of mmdet. A second call, or a call with the full mmcv installed, changes
    nothing.
    """
    # mmengine 0.10 imports pkg_resources; a user who exports a model cannot change that
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    if _EXTENSION in sys.modules or importlib.util.find_spec(_EXTENSION) is not None:
        return
    stand_in = _MissingOps(_EXTENSION)
    # A spec without a loader: mmengine reads the spec, and takes a missing loader for "not compiled".
    stand_in.__spec__ = importlib.machinery.ModuleSpec(_EXTENSION, loader=None)
    sys.modules[_EXTENSION] = stand_in
