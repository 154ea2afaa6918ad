"""Servers of the tests' own in place of Triton: each starts, and returns how to stop it and its port."""

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer

import grpc
from tritonclient.grpc import service_pb2_grpc


def listen_http(handler, host="127.0.0.1", port=0):
    server = ThreadingHTTPServer((host, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True, args=(0.05,)).start()

    def stop():
        server.shutdown()
        server.server_close()

    return stop, server.server_address[1]


def listen_grpc(service, host="127.0.0.1", port=0):
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"{host}:{port}")
    server.start()
    return lambda: server.stop(None).wait(), port
