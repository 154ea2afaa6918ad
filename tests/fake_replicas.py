"""Replicas of m2f in this process, on loopback addresses of their own: they answer at once, drain or break as told."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

DRAINED = "Request for unknown model: 'mask2former' has no available versions"
_LARGE = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]


class FakeReplica:
    """One replica.

    Attributes:
        state: "serving"; "leaving" is not ready but serves; "draining" has no model; "broken" hangs up on inferences.
        seen: headers of every inference that reached it.
    """

    def __init__(self, address, ports):
        self.state, self.seen = "serving", []
        self.address = address
        self._servers = [_HttpServer((address, ports[name]), self._handler()) for name in ("http", "health")]
        self._grpc = grpc.server(ThreadPoolExecutor(8), options=_LARGE)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(self), self._grpc)
        self._grpc.add_insecure_port(f"{address}:{ports['grpc']}")
        self._grpc.start()
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        """Close all ports."""
        self._grpc.stop(None).wait()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _handler(self):
        replica = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self._answer(200 if replica.state in ("serving", "broken") else 503, {})

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                replica.seen.append({name.lower(): value for name, value in self.headers.items()})
                if replica.state == "broken":
                    self.close_connection = True
                elif replica.state == "draining":
                    self._answer(404, {"error": DRAINED})
                else:
                    self._answer(200, {"replica": replica.address, "bytes": len(body)})

            def _answer(self, status, document):
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        return Handler


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, replica):
        self._replica = replica

    def ModelInfer(self, request, context):  # noqa: N802 (gRPC's name)
        self._replica.seen.append(dict(context.invocation_metadata()))
        if self._replica.state == "draining":
            context.abort(grpc.StatusCode.NOT_FOUND, DRAINED)
        if self._replica.state == "broken":
            context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        return service_pb2.ModelInferResponse(model_name=self._replica.address, id=request.id)
