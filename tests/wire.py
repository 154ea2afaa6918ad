"""KServe v2 as bytes, for requests that no client library would send: HTTP and gRPC, and what came back."""

import contextlib
import http.client
import json
import re
import ssl
from dataclasses import dataclass

import grpc
import tritonclient.grpc
import tritonclient.http
from kserve import DTYPES
from tritonclient.grpc import service_pb2

# what Triton 2.51's front end says before any model has seen the request
_UNPARSED = r"[Ff]ailed to parse|Unable to parse|was not found in the JSON|Unsupported compression type"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Answer:
    """What the server said: `200` or `OK` with nothing more, or another status and why."""

    status: str
    message: str = ""

    @property
    def accepted(self):
        return self.status in ("200", "OK")

    @property
    def refused(self):
        """The client is told that it is at fault; Triton says 5xx and INTERNAL of what it cannot parse itself."""
        own = self.status.startswith("4") or self.status in ("INVALID_ARGUMENT", "NOT_FOUND")
        return own or (self.status in ("500", "501", "INTERNAL") and bool(re.search(_UNPARSED, self.message)))


@dataclass(frozen=True)
class Post:
    """An HTTP request."""

    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    path: str = "/v2/models/mask2former/infer"

    @classmethod
    def of(cls, model, inputs, outputs=None, **parameters):
        """Tensors as the binary extension of the protocol has them."""
        tensors, requested = _tensors(tritonclient.http, inputs, outputs)
        generate = tritonclient.http.InferenceServerClient.generate_request_body
        body, json_size = generate(tensors, outputs=requested, parameters=parameters or None)
        headers = (("Inference-Header-Content-Length", str(json_size)),) if json_size is not None else ()
        return cls(bytes(body), headers, f"/v2/models/{model}/infer")


class HttpWire:
    """One connection, opened anew where the server closed it; with TLS if `ca`, a file, is given."""

    def __init__(self, server, timeout=60.0, ca=None):
        if ca is None:
            self._connection = http.client.HTTPConnection(server.http_url, timeout=timeout)
        else:
            context = ssl.create_default_context(cafile=ca)
            self._connection = http.client.HTTPSConnection(server.http_url, timeout=timeout, context=context)

    def send(self, post):
        for attempt in range(2):
            try:
                return self._send(post)
            except (http.client.RemoteDisconnected, ConnectionError, BrokenPipeError):
                self._connection.close()
                if attempt:
                    raise
        return None

    def _send(self, post):
        self._connection.request("POST", post.path, body=post.body, headers=dict(post.headers))
        response = self._connection.getresponse()
        body = response.read()
        if response.status == http.client.OK:
            return Answer("200")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            body = json.loads(body)["error"].encode()
        return Answer(str(response.status), body.decode(errors="replace"))

    def close(self):
        self._connection.close()


def message(model, inputs, outputs=None, **parameters):
    """A ModelInferRequest, to be changed before it is sent."""
    tensors, requested = _tensors(tritonclient.grpc, inputs, outputs)
    request = service_pb2.ModelInferRequest(model_name=model)
    for tensor in tensors:
        request.inputs.append(tensor._get_tensor())
        request.raw_input_contents.append(tensor._get_content())
    request.outputs.extend(output._get_tensor() for output in requested or ())
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


class GrpcWire:
    """One channel; with TLS if `ca`, a file, is given."""

    def __init__(self, server, timeout=60.0, ca=None):
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if ca is None:
            self._channel = grpc.insecure_channel(server.grpc_url, options=options)
        else:
            credentials = grpc.ssl_channel_credentials(ca.read_bytes())
            self._channel = grpc.secure_channel(server.grpc_url, credentials, options=options)
        self._timeout = timeout

    def send(self, request, method=INFER):
        """Send a message, or bytes that may be none."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            self._channel.unary_unary(method)(data, timeout=self._timeout)
        except grpc.RpcError as error:
            return Answer(error.code().name, error.details() or "")
        return Answer("OK")

    def close(self):
        self._channel.close()


def _tensors(module, inputs, outputs):
    tensors = []
    for name, array in inputs.items():
        tensor = module.InferInput(name, list(array.shape), DTYPES[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors, None if outputs is None else [module.InferRequestedOutput(name) for name in outputs]
