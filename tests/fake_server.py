"""A gRPC server without Triton: a function answers, so commands can be tested in the processes that users start."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from kserve import DTYPES
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from m2f_client import InvalidRequest, ModelNotFound, ServerError, ServerUnavailable

CODES = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    ServerUnavailable: grpc.StatusCode.UNAVAILABLE,
    ServerError: grpc.StatusCode.INTERNAL,
}


@dataclass
class Asked:
    """A request as the server sees it."""

    inputs: dict[str, Any]
    parameters: dict[str, Any]
    outputs: list[str]


@dataclass
class FakeServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with the arrays that `answer(Asked)` returns, or with the M2FError that it raises."""

    answer: Any
    class_names: str | None = None  # JSON
    requests: list[Asked] = field(default_factory=list)
    url: str = ""

    def ModelInfer(self, request, context):  # noqa: N802
        (data,) = (deserialize_bytes_tensor(raw) for raw in request.raw_input_contents)
        parameters = {name: getattr(p, p.WhichOneof("parameter_choice")) for name, p in request.parameters.items()}
        asked = Asked({"image": data.reshape(-1, 1)}, parameters, [output.name for output in request.outputs])
        if asked.outputs == ["class_names"]:
            arrays = self._named(context)
        else:
            self.requests.append(asked)
            try:
                arrays = self.answer(asked)
            except tuple(CODES) as error:
                context.abort(CODES[type(error)], str(error))
        response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        for name in asked.outputs:
            array = arrays[name]
            response.outputs.add(name=name, datatype=DTYPES[str(array.dtype)], shape=array.shape)
            texts = array.dtype == object
            data = (serialize_byte_tensor(array).item() if array.size else b"") if texts else array.tobytes()
            response.raw_output_contents.append(data)
        return response

    def _named(self, context):
        if self.class_names is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference output 'class_names' for model 'm'")
        return {"class_names": np.array([[self.class_names.encode()]], object)}


@contextlib.contextmanager
def serving(answer, *, class_names=None, port=0):
    """Serve on a loopback port, a free one by default, until the block ends."""
    fake = FakeServer(answer, class_names)
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    fake.url = f"grpc://127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    try:
        yield fake
    finally:
        server.stop(None).wait()
