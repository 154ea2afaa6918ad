"""A transport without a server, to test code that uses `Client` or `AsyncClient`.

client = Client(transport=FakeTransport(lambda request: stacked([result_of(masks)])))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.contract import CLASS_NAMES
from m2f.rle import encode_mask
from m2f_client.client_errors import InvalidRequest
from m2f_client.result import Result
from m2f_client.transports.protocol import Array, Request

_PADDING: dict[str, Any] = {"labels": -1, "rle": b"", "semantic": -1}  # and 0 for the rest


class FakeTransport:
    """A transport for `Client` and `AsyncClient` that gets its answers from a function.

    Args:
        handler: Request -> arrays by output name, batch dimension first. It may raise an M2FError. Outputs that the
            request does not name are dropped.
        class_names: the class names of every model. None: the models do not state any.

    Attributes:
        requests: the requests so far, except those for class names.
        class_name_calls: how often class names were asked for; these requests are not among `requests`.
        closed: whether the client was closed.
    """

    def __init__(
        self, handler: Callable[[Request], Mapping[str, Array]], *, class_names: Sequence[str] | None = None
    ) -> None:
        self.url = "fake://server"
        self.requests: list[Request] = []
        self.class_name_calls = 0
        self.closed = False
        self._handler = handler
        self._class_names = class_names

    async def infer(self, request: Request) -> dict[str, Array]:
        """Return the handler's arrays, or the class names."""
        if request.outputs == (CLASS_NAMES,):
            return self._named(request)
        self.requests.append(request)
        answer = self._handler(request)
        return {name: answer[name] for name in request.outputs}

    async def close(self) -> None:
        """Set `closed`."""
        self.closed = True

    def _named(self, request: Request) -> dict[str, Array]:
        self.class_name_calls += 1
        if self._class_names is None:  # as Triton says it
            raise InvalidRequest(f"unexpected inference output '{CLASS_NAMES}' for model '{request.model}'")
        return {CLASS_NAMES: np.array([[json.dumps(list(self._class_names)).encode()]], object)}


def result_of(
    masks: npt.NDArray[Any], *, scores: Sequence[float] | None = None, labels: Sequence[int] | None = None
) -> Result:
    """Return the structured outputs that a server would send for masks [K, H, W]."""
    count = len(masks)
    rle = np.empty(count, np.object_)
    rle[:] = [encode_mask(mask) for mask in masks]
    return Result(
        {
            "num_instances": np.array([count], np.int32),
            "scores": np.array(np.linspace(0.9, 0.5, count) if scores is None else scores, np.float32),
            "labels": np.array(np.arange(count) if labels is None else labels, np.int32),
            "boxes": np.array([_box(mask) for mask in masks], np.float32).reshape(-1, 4),
            "areas": np.array([np.count_nonzero(mask) for mask in masks], np.int32),
            "queries": np.arange(count, dtype=np.int32),
            "rle": rle,
            "size": np.array(masks.shape[1:], np.int32),
            "masks": masks.astype(np.uint8),
            "packed_masks": np.packbits(masks.astype(bool), axis=2),
        }
    )


def _box(mask: npt.NDArray[Any]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)


def stacked(results: Sequence[Result]) -> dict[str, Array]:
    """Return a server's answer for several images: rows and dense masks are padded to the largest."""
    answer = {}
    for name, first in results[0].outputs.items():
        arrays = [result.outputs[name] for result in results]
        shape = np.max([array.shape for array in arrays], axis=0)
        answer[name] = np.full((len(arrays), *shape), _PADDING.get(name, 0), first.dtype)
        for index, array in enumerate(arrays):
            answer[name][(index, *(slice(side) for side in array.shape))] = array
    return answer
