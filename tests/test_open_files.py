"""The limit of open files."""

import resource
import subprocess
import sys

from m2f_server.open_files import raise_limit

PROGRAM = "import sys; print(flush=True); sys.stdin.read()"


def test_the_soft_limit_becomes_the_hard_limit():
    command = ["sh", "-c", 'ulimit -Sn 100; exec "$@"', "sh", sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert soft == 100
        assert raise_limit(process.pid) == hard
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        process.stdin.close()
