"""OpenVINO as it is imported here: nothing of it calls its makers."""

import os
import subprocess
import sys

WATCHED = """
import socket, sys, threading

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.fork"):
        print(event, args)

sys.addaudithook(refuse)
from m2f_backend.openvino_network import openvino
openvino.Core()
assert "openvino" in sys.modules
print([name for name, module in sys.modules.items() if "telemetry" in name and module is not None])
print(threading.active_count())
"""


def test_importing_it_sends_nothing_and_writes_nothing(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}  # where its identity of the user would be
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # where it would be silent by itself
        environment.pop(name, None)
    told = subprocess.run(
        [sys.executable, "-c", WATCHED], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert told == "[]\n1\n"
    assert list(tmp_path.iterdir()) == []
