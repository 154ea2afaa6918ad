"""`m2f serve` on a repository of one tiny model, made for a test."""

import subprocess
import sys
from pathlib import Path

CONFIG = """
backend: "python"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }]
instance_group [{ kind: KIND_CPU }]
"""


MODEL = """
import os
import sys
import numpy
import m2f
import triton_python_backend_utils as pb_utils
print("SEES", m2f.__file__, numpy.__file__, *map(os.environ.get, ["OMP_NUM_THREADS", "GLIBC_TUNABLES"]), flush=True)

class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "x") for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy())]) for x in tensors]
"""


FREE_PORTS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
FREE_PORT_OPTIONS = ["--http-port=0", "--grpc-port=0", "--metrics-port=0", "--health-port=0"]


def write_model(repository: Path, *, name: str = "identity", config: str = CONFIG, model: str = MODEL) -> Path:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    (repository / name / "1" / "model.py").write_text(model)
    return repository


def command(*arguments: str, **options) -> subprocess.Popen:
    """Start `m2f serve`."""
    program = [sys.executable, "-c", "from m2f_cli.serve import serve; serve(prog_name='m2f serve')"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*program, *arguments], **pipes, **options)


def listening(port: int) -> list[str]:
    """Local addresses of the sockets that listen on a port, as the kernel writes them."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
