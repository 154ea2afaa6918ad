"""Requests and answers over HTTP/1.1, the same for every service: prepared bytes out, bytes in.

Requests are built before the measurement, and answers are read after it, so the client costs every service the same.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tritonclient.http as triton
from pycocotools import mask as coco

_LENGTH = re.compile(rb"\ncontent-length: *(\d+)", re.IGNORECASE)
_HEADER_LENGTH = re.compile(rb"\ninference-header-content-length: *(\d+)", re.IGNORECASE)
TIMEOUT_S = 120
INSTANCES = ("labels", "scores", "boxes", "rle", "size")
DENSE = ("labels", "scores", "masks", "cls_logits", "mask_logits")


class Reply(NamedTuple):
    """An answer as it came.

    Attributes:
        head: status line and headers.
        body: what follows.
    """

    head: bytes
    body: bytearray


class Answer(NamedTuple):
    """The instances of a picture.

    Attributes:
        labels: class of each.
        scores: of each.
        rles: COCO's compressed RLE of each.
        boxes: x1 y1 x2 y2 of each; None where the service sends none.
    """

    labels: list[int]
    scores: list[float]
    rles: list[dict[str, Any]]
    boxes: list[list[float]] | None


class WireError(Exception):
    """A service refused a request, or hung up."""


class Wire:
    """Connections to a service of this machine, one for each thread.

    Args:
        ports: of the processes of the service. Threads take them in turn, as a load balancer would that costs nothing.
    """

    def __init__(self, *ports: int) -> None:
        self._ports = itertools.cycle(ports)
        self._own = threading.local()

    def exchange(self, request: bytes) -> Reply:
        """Send a request and return the answer.

        Raises:
            WireError: the status is not 200, or the connection ended.
        """
        connection = self._connection()
        connection.sendall(request)
        received = bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more(connection)
        head, rest = bytes(received[:end]), received[end + 4 :]
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200") or length is None:
            raise WireError(f"{head.decode()} {rest.decode(errors='replace')[:500]}")
        body, filled = bytearray(int(length[1])), len(rest)
        body[:filled] = rest
        left = memoryview(body)[filled:]
        while left:
            count = connection.recv_into(left)
            if not count:
                raise WireError("the service hung up in the middle of an answer")
            left = left[count:]
        return Reply(head, body)

    def _connection(self) -> socket.socket:
        if not hasattr(self._own, "socket"):
            self._own.socket = socket.create_connection(("127.0.0.1", next(self._ports)), TIMEOUT_S)
            self._own.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._own.socket  # type: ignore[no-any-return]

    @staticmethod
    def _more(connection: socket.socket) -> bytes:
        received = connection.recv(1 << 16)
        if not received:
            raise WireError("the service hung up")
        return received


class Format(NamedTuple):
    """How a service wants requests, and how it answers.

    Attributes:
        request: picture to the bytes to send.
        read: reply to the instances in it.
    """

    request: Callable[[bytes], bytes]
    read: Callable[[Reply], Answer]


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def _read_json(reply: Reply) -> Answer:
    return from_json(json.loads(bytes(reply.body)))


def from_json(found: dict[str, Any]) -> Answer:
    """Return the answer of a Python server."""
    rles = [{"size": found["size"], "counts": counts.encode()} for counts in found["counts"]]
    return Answer(found["labels"], found["scores"], rles, found["boxes"])


JSON = Format(lambda picture: _post("/predict", picture, "Content-Type: image/jpeg"), _read_json)


def triton_format(model: str, outputs: Sequence[str], *, batched: bool) -> Format:
    """Return the binary form of KServe's protocol for a model of Triton.

    Args:
        model: name of the model.
        outputs: names of the outputs to ask for.
        batched: whether the first dimension of each tensor is the batch.
    """

    def request(picture: bytes) -> bytes:
        image = triton.InferInput("image", [1, 1] if batched else [1], "BYTES")
        image.set_data_from_numpy(np.array([picture], np.object_).reshape(image.shape()))
        wanted = [triton.InferRequestedOutput(name) for name in outputs]
        body, size = triton.InferenceServerClient.generate_request_body([image], outputs=wanted)
        return _post(f"/v2/models/{model}/infer", body, f"Inference-Header-Content-Length: {size}")

    def read(reply: Reply) -> Answer:
        size = _HEADER_LENGTH.search(reply.head)
        result = triton.InferenceServerClient.parse_response_body(
            bytes(reply.body), header_length=int(size[1]) if size else None
        )
        arrays = {name: result.as_numpy(name) for name in outputs}
        if batched:
            arrays = {name: array[0] for name, array in arrays.items()}
        return _answer(arrays)

    return Format(request, read)


def _answer(arrays: dict[str, Any]) -> Answer:
    labels, scores = arrays["labels"].tolist(), arrays["scores"].tolist()
    if "masks" in arrays:
        return Answer(labels, scores, [coco.encode(np.asfortranarray(mask)) for mask in arrays["masks"]], None)
    size = arrays["size"].tolist()
    rles = [{"size": size, "counts": counts} for counts in arrays["rle"]]
    return Answer(labels, scores, rles, arrays["boxes"].tolist())
