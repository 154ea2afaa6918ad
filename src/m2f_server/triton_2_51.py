"""Workarounds for Triton 2.51 (24.10), outside its processes. Try to remove each one when you change the server.

Sources are files of github.com/triton-inference-server. "Measured" means seen with 2.51 and not looked up in a source.
The Python models have workarounds of their own: `m2f_backend.stub_2_51`.

More are whole modules:

- `stubs` reads the process table, because Triton neither notices nor restarts a dead stub; each of its requests fails
  after one second. Triton reports the model as not ready from 25.12 on. Source: python_backend, src/stub_launcher.cc.
- `pulse` finds a server that is frozen in its handler of a fatal signal, for example after many cancelled gRPC calls:
  the handler needs memory for a stack trace, and waits for ever if the thread has memory's lock. Source: server,
  src/main.cc. Measured.
- `remains` removes what Triton copies to /tmp for a model that is loaded with its files in the request: the copy stays
  if the model's stub was killed. Source: core, src/filesystem/implementations/local.h. Measured.
- `locate` composes a Python environment, because the interpreter in a stub ignores PYTHONPATH, PYTHONHOME and the
  user's site-packages. It looks for `python3` on PATH. Source: python_backend, src/pb_stub.cc.
"""

import secrets
from collections.abc import Mapping
from typing import Any

# The pool keeps the memory of the largest requests and answers. Source: server, src/grpc/grpc_server.cc. Measured.
ARGUMENTS = ("--grpc-infer-allocation-pool-size=0",)

# glibc makes 8 heaps for each core, and each heap keeps the memory of its largest requests. Measured.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}

# How each front end takes an IPv6 address. Source: libevhtp, evhtp.c, `evhtp_bind_socket` (HTTP and metrics); server,
# src/grpc/grpc_server.cc. Measured.
IPV6 = {"http": "ipv6:{}", "metrics": "ipv6:{}", "grpc": "[{}]"}

# After SIGTERM Triton waits this long for requests, and as long for idle HTTP connections, so the default of 30 s is
# too long. Source: server, src/http_server.cc, `HTTPServer::Stop`.
EXIT_TIMEOUT_S = 3

# A stub that dies during a request leaves about 36 threads and 2 to 3 MB in the server. So a server is replaced after
# this many reloads. Measured.
MOST_RELOADS = 100

# Of a model with several instances of which one died, a reload does not end the others. They are killed after this
# time, in which they finish the requests that they have. Source: python_backend, src/python_be.cc. Measured.
LEFT_BEHIND_S = 30.0


def with_a_change(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model configuration that Triton takes for a new one.

    Triton does not reload a model whose files and configuration are unchanged, even if its stub is dead. So a field
    that names engine files by GPU, and means nothing to a Python model, gets a new entry. Unloading the model first
    would take away every ensemble that has it as a step.
    Source: core, src/model_repository_manager/model_repository_manager.cc.
    """
    files = {**config.get("cc_model_filenames", {}), "m2f-reload": secrets.token_hex(4)}
    return {**config, "cc_model_filenames": files}


def without_warm_up(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model configuration without warm-up, for a model that may fail it.

    A failing warm-up ends the server with a SIGSEGV one time in two. Measured. Source: core,
    src/backend_model_instance.cc.
    """
    return {**config, "model_warmup": []}
