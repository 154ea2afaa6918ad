"""Let mmdet be imported where mmcv has no compiled operators (``mmcv-lite``).

mmdet imports every operator of mmcv when it is imported, Mask2Former needs none of them: its point
sampling is ``torch.nn.functional.grid_sample``, and its deformable attention falls back to plain PyTorch
on tensors that are not on a GPU. So names are enough. One that is called after all raises.
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
    """Has every operator by name; none can be called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_args: object, **_kwargs: object) -> NoReturn:
            raise RuntimeError(f"mmcv's operator {name!r} is not compiled here: install the full mmcv, not mmcv-lite")

        return missing


def ensure_mmcv_ops() -> bool:
    """Register a stand-in for ``mmcv._ext`` where the compiled module is not installed.

    Call it before the first import of mmdet. Calling it again, or where the full mmcv is installed,
    changes nothing.

    Returns:
        True where the compiled operators are there, False where the stand-in is.
    """
    # mmengine 0.10 imports it; nobody who exports a model can do anything about that
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    if _EXTENSION in sys.modules:
        return not isinstance(sys.modules[_EXTENSION], _MissingOps)
    if importlib.util.find_spec(_EXTENSION) is not None:
        return True
    stand_in = _MissingOps(_EXTENSION)
    # A spec without a loader: mmengine asks for it, and takes the missing loader for "not compiled".
    stand_in.__spec__ = importlib.machinery.ModuleSpec(_EXTENSION, loader=None)
    sys.modules[_EXTENSION] = stand_in
    return False
