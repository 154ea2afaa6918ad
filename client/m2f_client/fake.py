"""A transport without a server, to test code that uses `Client` or `AsyncClient`.

client = Client(transport=FakeTransport(lambda request: stacked([result_of(masks)])))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2f.rle import encode_mask
from m2f_client.result import Result
from m2f_client.transports.protocol import Array, Request

_PADDING: dict[str, Any] = {"labels": -1, "rle": b"", "semantic": -1}  # and 0 for the rest


class FakeTransport:
    """A transport for `Client` and `AsyncClient` that gets its answers from a function.

    Args:
        handler: Request -> arrays by output name, batch dimension first. It may raise an M2FError. Outputs that the
            request does not name are dropped.
        config: the configuration of every model.

    Attributes:
        requests: the requests so far.
        config_calls: how often a configuration was read.
        closed: whether the client was closed.
    """

    def __init__(
        self, handler: Callable[[Request], Mapping[str, Array]], *, config: Mapping[str, Any] | None = None
    ) -> None:
        self.url = "fake://server"
        self.requests: list[Request] = []
        self.config_calls = 0
        self.closed = False
        self._handler = handler
        self._config = dict(config or {})

    async def infer(self, request: Request) -> dict[str, Array]:
        """Return the handler's arrays."""
        self.requests.append(request)
        answer = self._handler(request)
        return {name: answer[name] for name in request.outputs}

    async def model_config(self, model: str, timeout: float | None) -> dict[str, Any]:  # noqa: ARG002 (part of the protocol)
        """Return the configuration."""
        self.config_calls += 1
        return self._config

    async def close(self) -> None:
        """Set `closed`."""
        self.closed = True


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
